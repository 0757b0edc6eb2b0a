"""args_fast/rewards/README.md: the reward that it adds, as written there."""

import re
from pathlib import Path

import oracle
import pytest
from tiny_models import language_model, tokens
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig, rewards

README = Path(rewards.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def prefers_e():
    """The class of step 1, registered as in step 2."""
    file, registry, guide = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names = {"KINDS": rewards.KINDS}
    exec("\n".join(line[3:] for line in file.splitlines()), names)
    exec("\n".join(line[3:] for line in registry.splitlines()), names)
    assert rewards.KINDS.pop("prefers_e") is names["PrefersE"]
    assert "ArgsDecoder(lm_model, PrefersE(), tokenizer=tokenizer)" in guide
    return names["PrefersE"]


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece()], ids=["bytes", "pieces"])
@pytest.mark.parametrize("temperature", [None, 0.8])
def test_the_readmes_reward_guides(prefers_e, tokenizer, temperature):
    decoder = ArgsDecoder(language_model(), prefers_e(), tokenizer=tokenizer)
    prompt = tokens(7)

    def naive(text):
        start = tokenizer.decode(prompt, skip_special_tokens=True)
        response = tokenizer.decode(text, skip_special_tokens=True)[len(start) :].rstrip("\ufffd")
        return response.count("e") / max(1, len(response))

    options = {"k": 6, "w": 9.0, "temperature": temperature}
    expected = oracle.decode(language_model(), naive, prompt, steps=12, **options)
    config = DecodingConfig(max_new_tokens=12, eos_token_ids=[], **options)
    (result,) = decoder.generate(prompt, config)
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-6)
    assert decoder.token_rewards(prompt, result.token_ids) == pytest.approx(result.rewards)
