"""The oracle itself: eq. 2 and 3 of the paper, checked one step at a time from the outside."""

import copy
import math

import oracle
import pytest
import torch
import transformers as t
from tiny_models import (
    CONFIGS,
    REWARD_CONFIGS,
    VOCABULARY,
    decoder,
    language_model,
    reward_model,
    tokens,
)

from args_fast import ArgsDecoder, DecodingConfig, reference


def never(*_):
    raise AssertionError("the reward model ran")


def both(lm, rm, prompt, config):
    """The oracle's generation and the engine's."""
    (fast,) = ArgsDecoder(lm, rm).generate(prompt, config)
    return [reference.decode(lm, rm, prompt, config), fast]


# ---- equation 2 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma2"])
@pytest.mark.parametrize("w", [1.5, -0.7, 100.0])
def test_every_step_maximises_logprob_plus_w_times_reward(name, w):
    # The rewards come from transformers' own classification forward, pooling and all, which is
    # right as long as no text holds its padding id.
    lm, rm = language_model(name), copy.deepcopy(reward_model(name))
    rm.config.pad_token_id = VOCABULARY + 5
    prompt, k = tokens(11), 6
    config = DecodingConfig(k=k, w=w, max_new_tokens=5, eos_token_ids=[])
    result = reference.decode(lm, rm, prompt, config)
    x = list(prompt)
    for i, token in enumerate(result.token_ids):
        with torch.no_grad():
            distribution = torch.log_softmax(lm(torch.tensor([x])).logits[0, -1], dim=0)
            candidates = distribution.topk(k).indices
            texts = torch.cat([torch.tensor([x]).expand(k, -1), candidates[:, None]], dim=1)
            r = rm(texts, attention_mask=torch.ones_like(texts)).logits[:, 0]
        s = distribution[candidates] + w * r
        assert candidates[s.argmax()] == token
        best = s.argmax()
        assert result.logprobs[i] == pytest.approx(distribution[token].item(), abs=1e-4)
        assert result.rewards[i] == pytest.approx(r[best].item(), abs=1e-4)
        assert result.scores[i] == pytest.approx(s[best].item(), abs=1e-4 * max(1, abs(w)))
        x.append(token)
    assert result.prompt_token_ids == prompt
    assert result.text is None


def test_k_of_the_whole_vocabulary_asks_the_reward_model_about_every_token():
    lm, rm = language_model(), reward_model()
    config = DecodingConfig(k=VOCABULARY, w=1e4, max_new_tokens=1, eos_token_ids=[])
    prompt = tokens(6)
    texts = torch.tensor([[*prompt, v] for v in range(VOCABULARY)])
    with torch.no_grad():
        rewards = rm.score(rm.model(texts).last_hidden_state[:, -1])[:, 0]
    for result in both(lm, rm, prompt, config):
        assert result.token_ids == [rewards.argmax().item()]


def test_the_score_is_the_sum_of_its_parts():
    config = DecodingConfig(k=7, w=-2.5, max_new_tokens=6, temperature=0.8, eos_token_ids=[])
    for result in both(language_model(), reward_model("opt"), tokens(9), config):
        for p, r, s in zip(result.logprobs, result.rewards, result.scores, strict=True):
            assert s == pytest.approx(p - 2.5 * r, abs=1e-4)
            assert p <= 0


# ---- ties ----------------------------------------------------------------------------------------


def make_tokens_equally_likely(lm):
    """Every logit is the first value of the hidden state, to the last bit."""
    with torch.no_grad():
        lm.lm_head.weight.zero_()[:, 0] = 1.0


def test_equal_logprobs_go_to_the_lower_id():
    lm, rm = copy.deepcopy(language_model()), copy.deepcopy(reward_model())
    make_tokens_equally_likely(lm)
    torch.nn.init.zeros_(rm.score.weight)
    for config in (
        DecodingConfig(k=5, max_new_tokens=4, eos_token_ids=[]),
        DecodingConfig(k=1, max_new_tokens=4, eos_token_ids=[]),
        DecodingConfig(w=0, max_new_tokens=4, eos_token_ids=[]),
    ):
        for result in both(lm, rm, tokens(9), config):
            assert result.token_ids == [0, 0, 0, 0]
            assert result.logprobs == pytest.approx([-math.log(VOCABULARY)] * 4, abs=1e-5)


def test_equally_likely_tokens_enter_the_candidates_by_id():
    lm, rm = copy.deepcopy(language_model()), reward_model()
    make_tokens_equally_likely(lm)
    config = DecodingConfig(k=5, w=9, max_new_tokens=8, eos_token_ids=[])
    for result in both(lm, rm, tokens(9), config):
        assert set(result.token_ids) <= set(range(5))
        assert len(set(result.token_ids)) > 1


def test_equal_rewards_go_to_the_likelier_token():
    lm, rm = language_model(), copy.deepcopy(reward_model())
    torch.nn.init.zeros_(rm.score.weight)
    config = DecodingConfig(k=10, w=3.0, max_new_tokens=6, eos_token_ids=[])
    greedy = DecodingConfig(k=1, max_new_tokens=6, eos_token_ids=[])
    (expected,) = ArgsDecoder(lm, rm).generate(tokens(9), greedy)
    for result in both(lm, rm, tokens(9), config):
        assert result.token_ids == expected.token_ids
        assert result.rewards == [0.0] * 6


# ---- plain greedy --------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "w"), [(1, 1.5), (10, 0.0)])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_k_1_and_w_0_are_transformers_greedy_and_never_run_the_reward_model(
    monkeypatch, name, k, w
):
    lm, pair = language_model(name), decoder(name, "llama")
    monkeypatch.setattr(lm.generation_config, "eos_token_id", None)
    prompts = [tokens(n, seed=n) for n in (1, 9, 30)]
    free = [greedy(lm, prompt, None) for prompt in prompts]
    ends = sorted({free[0][3], free[2][7]})  # ids that do come up
    hooks = [module.register_forward_pre_hook(never) for module in pair.reward_model.modules()]
    try:
        for eos in ([], ends):
            config = DecodingConfig(k=k, w=w, max_new_tokens=12, eos_token_ids=eos)
            for prompt, result in zip(prompts, pair.generate(prompts, config), strict=True):
                expected = greedy(lm, prompt, eos or None)
                assert result.token_ids == expected
                assert result.finish_reason == ("eos" if expected[-1] in eos else "length")
                assert all(map(math.isnan, result.rewards))
                known = w == 0
                assert [s == p for s, p in zip(result.scores, result.logprobs, strict=True)] == [
                    known
                ] * len(expected)
                printed = reference.decode(lm, pair.reward_model, prompt, config)
                assert printed.token_ids == expected
    finally:
        for hook in hooks:
            hook.remove()


def greedy(lm, prompt, eos):
    ids = torch.tensor([prompt])
    out = lm.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=t.GenerationConfig(
            do_sample=False, max_new_tokens=12, eos_token_id=eos, pad_token_id=0
        ),
    )
    return out[0, len(prompt) :].tolist()


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["config", "generation_config", "several", "int"])
def test_an_end_token_ends_and_is_kept(given):
    lm, rm = copy.deepcopy(language_model()), reward_model()
    prompt = tokens(9)
    free = reference.decode(
        lm, rm, prompt, DecodingConfig(k=7, max_new_tokens=8, eos_token_ids=[])
    ).token_ids
    end = free[4]
    expected = free[: free.index(end) + 1]
    eos = [end] if given == "config" else None
    lm.generation_config.eos_token_id = {"int": end, "several": [VOCABULARY - 1, end, 0]}.get(
        given, [end]
    )
    for result in both(lm, rm, prompt, DecodingConfig(k=7, max_new_tokens=8, eos_token_ids=eos)):
        assert result.token_ids == expected or given == "several"
        assert result.token_ids == free[: len(result.token_ids)]
        assert result.token_ids[-1] in (VOCABULARY - 1, end, 0)
        assert result.finish_reason == "eos"
        assert len(result.logprobs) == len(result.rewards) == len(result.scores)
        assert len(result.scores) == len(result.token_ids)
    for eos in ([], ()):
        config = DecodingConfig(k=7, max_new_tokens=8, eos_token_ids=eos)
        for result in both(lm, rm, prompt, config):
            assert result.token_ids == free
            assert result.finish_reason == "length"


def test_a_model_without_end_tokens_runs_to_the_length():
    lm = copy.deepcopy(language_model())
    lm.generation_config.eos_token_id = None
    for result in both(lm, reward_model(), tokens(9), DecodingConfig(k=3, max_new_tokens=30)):
        assert len(result.token_ids) == 30
        assert result.finish_reason == "length"


def test_an_end_on_the_last_token_is_an_end():
    lm, rm = language_model(), reward_model()
    config = DecodingConfig(k=7, max_new_tokens=3, eos_token_ids=[])
    last = reference.decode(lm, rm, tokens(9), config).token_ids[2]
    config = DecodingConfig(k=7, max_new_tokens=3, eos_token_ids=[last])
    for result in both(lm, rm, tokens(9), config):
        assert result.finish_reason == "eos"


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gpt_neox", "qwen2"])
def test_pad_equal_to_eos_scores_the_end_token_at_its_own_position(name):
    # The pooling of *ForSequenceClassification takes the last token that is not padding: with
    # pad == eos it scores the candidate EOS as r([x]), not r([x, EOS]).
    lm, rm = language_model(name), copy.deepcopy(reward_model(name))
    prompt = tokens(12)
    texts = torch.tensor([[*prompt, v] for v in range(VOCABULARY)])
    with torch.no_grad():
        rewards = rm.score(rm.base_model(texts).last_hidden_state[:, -1])[:, 0]
    eos = rewards.argmax().item()  # the best of all tokens, if it is scored as itself
    rm.config.pad_token_id = eos
    text = texts[[eos]]
    with torch.no_grad():
        hidden = rm.base_model(text, attention_mask=torch.ones_like(text)).last_hidden_state
        own, before = rm.score(hidden[0, -1]).item(), rm.score(hidden[0, -2]).item()
        pooled = rm(text).logits.item()
    assert pooled == pytest.approx(before, abs=1e-4)  # the trap is there
    assert abs(own - before) > 0.05
    config = DecodingConfig(k=VOCABULARY, w=100.0, max_new_tokens=5, eos_token_ids=[eos])
    for result in both(lm, rm, prompt, config):
        assert result.token_ids == [eos]
        assert result.finish_reason == "eos"
        assert result.rewards == pytest.approx([own], rel=1e-4)


# ---- two oracles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARD_CONFIGS)
@pytest.mark.parametrize("temperature", [None, 0.6])
def test_the_two_oracles_agree(name, temperature):
    lm, rm = language_model("llama"), reward_model(name)
    options = {"k": 9, "w": 1.5, "temperature": temperature, "seed": 7}
    prompt = tokens(13)
    wanted = oracle.decode(lm, rm, prompt, steps=10, **options)
    config = DecodingConfig(max_new_tokens=10, eos_token_ids=[], **options)
    result = reference.decode(lm, rm, prompt, config)
    assert wanted.margin > 1e-5
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)
    assert result.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
