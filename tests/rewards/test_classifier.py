"""Classifiers as people have them: templates, closing tokens, heads and labels; against a naive
decoder that recomputes each candidate's whole text by the model itself."""

import copy

import oracle
import pytest
import torch
from encoders import SIZES
from passes import rows_of
from refusals import refuses
from safetensors.torch import save_file
from tiny_models import CONFIGS, decoder, language_model, reward_model, tokens
from traffic import assert_as_alone, run, scheduler, sequence
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertDecoderConfig,
    OPTForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from vocabularies import byte_level

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, LengthError, PromptError, RewardHeadError
from args_fast.rewards import Classifier

QUESTION = [{"role": "user", "content": "cab face"}]
TEMPLATES = {
    "chatml": "{% for m in messages %}<s>{{ m.role[0] }}.{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>a.{% endif %}",
    "system": "<s>be good.{% for m in messages %}\n{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}\nassistant: {% endif %}",
    "open": "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}\nassistant:{% endif %}",
}


def templated(template):
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = template
    return tokenizer


def last(model, ids, head=None):
    """The outputs of a head at the last of these ids."""
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        return (head or model.score)(hidden).float()


def decode(pair, prompt, naive, *, steps=8, k=5, w=3.0, eos=(), temperature=None):
    """The engine's result, once it is that of the oracle guided by ``naive``."""
    options = {"k": k, "w": w, "temperature": temperature}
    config = DecodingConfig(max_new_tokens=steps, eos_token_ids=list(eos), **options)
    result = pair.generate(prompt, config)[0]
    ids = result.prompt_token_ids
    expected = oracle.decode(language_model(), naive, ids, steps=steps, eos=eos, **options)
    assert expected.margin > 1e-5
    assert result.token_ids == expected.tokens
    assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)
    if not eos:  # token_rewards knows the language model's own end tokens
        along = pair.token_rewards(prompt, result.token_ids)
        assert along == pytest.approx(expected.rewards, abs=1e-4)
    return result


# ---- templates and closing ids -------------------------------------------------------------------


@pytest.mark.parametrize("rm", ["llama", "opt", "mistral"])
@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("temperature", [None, 0.8])
def test_a_conversation_is_read_in_the_rewards_own_rendering(rm, template, temperature):
    model, theirs = reward_model(rm), templated(TEMPLATES[template])
    ours = templated(TEMPLATES["open"])
    pair = ArgsDecoder(language_model(), Classifier(model, theirs), tokenizer=ours)
    before = theirs.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    closing = theirs("</s>\n" if template == "chatml" else "</s>", add_special_tokens=False)
    closing = [] if template == "open" else closing.input_ids
    prefix = theirs(before, add_special_tokens=False).input_ids

    def naive(ids):
        response = ids[len(start) :]
        return last(model, [*prefix, *response, *closing]).item()

    text = ours.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    start = ours(text, add_special_tokens=False).input_ids
    encoded = pair._encoder.requests
    request = encoded(start, DecodingConfig())[0]
    request.messages = QUESTION
    (reward,) = pair.engine.panel.rewards.values()
    rendering = reward.rendering(request)
    assert (rendering.prefix, rendering.closing) == (prefix, closing)

    engine = scheduler(rewards={"reward": reward}, pages=40)
    one = sequence(start, k=5, w=3.0, temperature=temperature, max_new_tokens=8)
    one.messages = QUESTION
    run(engine, one)
    expected = oracle.decode(
        language_model(), naive, start, k=5, w=3.0, steps=8, temperature=temperature
    )
    assert [token.token_id for token in one.tokens] == expected.tokens
    assert [token.reward for token in one.tokens] == pytest.approx(expected.rewards, abs=1e-4)


@pytest.mark.parametrize("rm", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("closing", [[4], [4, 5, 6]])
def test_an_end_token_adds_nothing_before_closing_ids(rm, closing):
    model = reward_model(rm)
    pair = ArgsDecoder(language_model(), Classifier(model, closing_ids=closing))
    eos = tuple(range(3, 18))  # so that many candidates are end tokens

    def naive(ids):
        text = ids[:-1] if ids[-1] in eos else ids
        return last(model, [*text, *closing]).item()

    for seed in range(6):
        decode(pair, tokens(9 + seed, seed=seed), naive, eos=eos)


def test_finished_texts_with_closing_ids_are_read_in_few_passes():
    model, prompt, text = reward_model(), tokens(9), [*tokens(20), 2]
    pair = ArgsDecoder(language_model(), Classifier(model, closing_ids=[4, 5, 6]))
    counted, hook = rows_of(model)
    along = pair.token_rewards(prompt, text)
    assert len(counted) == 2  # 16 texts, and 5
    (at_end,) = pair.rewards([prompt], [text])
    hook.remove()
    assert counted[2:] == [9 + 20 + 3]  # the end token gives way to the closing ids
    texts = [[*prompt, *text[:end], 4, 5, 6] for end in [*range(1, 21), 20]]
    assert along == pytest.approx([last(model, ids).item() for ids in texts], abs=1e-4)
    assert at_end == pytest.approx(along[-1], abs=1e-5)


def test_mixed_lengths_of_closings_in_one_batch():
    model, theirs = reward_model("opt"), templated(TEMPLATES["chatml"])
    reward = Classifier(model, theirs)
    reward.attach(decoder().engine.lm, None)
    engine = scheduler(rewards={"reward": reward}, pages=40)
    chat, plain = (sequence(tokens(12, seed=i), k=4, max_new_tokens=9) for i in range(2))
    chat.messages = QUESTION
    run(engine, chat, plain)
    alone = scheduler(rewards={"reward": reward}, pages=40)
    again = sequence(tokens(12), k=4, max_new_tokens=9)
    again.messages = QUESTION
    run(alone, again)
    assert again.ids == chat.ids
    expected = oracle.decode(language_model(), model, tokens(12, seed=1), k=4, w=1.5, steps=9)
    assert [token.token_id for token in plain.tokens] == expected.tokens


def test_text_is_not_rendered_and_a_template_can_be_demanded():
    theirs = templated(TEMPLATES["chatml"])
    pair = ArgsDecoder(
        language_model(), Classifier(reward_model(), theirs, template="chat"), tokenizer=theirs
    )
    with refuses(ConfigError, "template='chat'", "not a conversation", "decoder.chat"):
        pair.generate(tokens(5), DecodingConfig(max_new_tokens=1))
    with refuses(ConfigError, "template is 'chat'", "tokenizer="):
        Classifier(reward_model(), template="chat")
    with refuses(ConfigError, "template is 'jinja'"):
        Classifier(reward_model(), template="jinja")


def test_a_template_that_rewrites_answers_is_named():
    trims = TEMPLATES["chatml"].replace("m.content", "m.content | trim")
    with pytest.warns(UserWarning, match=r"rewrites answers.*rewards\.Text"):
        Classifier(reward_model(), templated(trims))


def test_a_template_that_drops_the_answer_is_an_error():
    asks_only = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with refuses(PromptError, "does not write the assistant's last message"):
        Classifier(reward_model(), templated(asks_only))


def test_lengths_count_the_rendering_and_its_closing_ids():
    pair = ArgsDecoder(language_model(), Classifier(reward_model(), closing_ids=[4, 5]))
    with refuses(LengthError, "97 together", "closing", "takes 96", "at most 4"):
        pair.generate(tokens(90), DecodingConfig(max_new_tokens=5, k=3))


# ---- heads and labels ----------------------------------------------------------------------------


def with_head(module, rm="llama"):
    model = copy.deepcopy(reward_model(rm))
    model.score = module
    return model.eval()


def test_two_labels_have_to_be_folded():
    torch.manual_seed(0)
    model = with_head(torch.nn.Linear(32, 2))
    model.config.id2label = {0: "bad", 1: "good"}
    with refuses(RewardHeadError, "2 outputs", "labels=1", "good"):
        Classifier(model)
    for labels, weights in (
        (1, [0.0, 1.0]),
        ("good", [0.0, 1.0]),
        ({1: 1.0, 0: -1.0}, [-1.0, 1.0]),
        ({"good": 2.0, "bad": 0.5}, [0.5, 2.0]),
    ):
        pair = ArgsDecoder(language_model(), Classifier(model, labels=labels))
        share = torch.tensor(weights)
        decode(pair, tokens(9), lambda ids, share=share: (last(model, ids) @ share).item())
    for labels in (2, "worse", {-1: 1.0}):
        with refuses(ConfigError, "labels names"):
            Classifier(model, labels=labels)


def test_a_head_that_is_an_mlp():
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    model = with_head(head)
    decode(ArgsDecoder(language_model(), model), tokens(9), lambda ids: last(model, ids).item())


class Int8Head(torch.nn.Module):
    """Weights of 8 bits, and an input of two dimensions, as some kernels want it."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, hidden):
        rows = hidden.flatten(0, -2)
        assert hidden.dim() >= 2
        return (rows @ (self.weight.float() * self.scale).T).view(*hidden.shape[:-1], -1)


def test_a_quantized_head():
    model = copy.deepcopy(reward_model())
    model.score = Int8Head(torch.nn.Linear(32, 1, bias=False))
    pair = ArgsDecoder(language_model(), model)
    decode(pair, tokens(9), lambda ids: oracle.reward(model, ids))


@pytest.mark.parametrize("name", ["v_head", "value_head", "reward_head"])
def test_a_head_under_another_usual_name(name):
    class Renamed(OPTForSequenceClassification):
        def forward(self, input_ids, **options):
            hidden = self.model(input_ids).last_hidden_state
            return SequenceClassifierOutput(logits=getattr(self, name)(hidden)[:, -1])

    model = copy.deepcopy(reward_model("opt"))
    model.__class__ = Renamed
    setattr(model, name, model.score)
    del model.score
    head = getattr(model, name)
    pair = ArgsDecoder(language_model(), model)
    decode(pair, tokens(9), lambda ids: last(model, ids, head).item())


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(
            is_decoder=True, num_labels=1, **SIZES
        ),  # reads the first token, through a pooler
        ModernBertDecoderConfig(
            bos_token_id=1, eos_token_id=2, num_labels=1, **SIZES
        ),  # a layer before it
    ],
    ids=["bert", "modernbert-decoder"],
)
def test_a_forward_that_is_more_than_a_head_of_a_usual_name_is_refused(config):
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    with refuses(RewardHeadError, "for a text of", "rewards.Text(model, tokenizer)"):
        ArgsDecoder(language_model(), model)
    assert model.config.pad_token_id == 0


def test_a_head_from_a_file(tmp_path):
    torch.manual_seed(2)
    weight, bias = torch.randn(1, 32), torch.randn(1)
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_file(tensors, tmp_path / "h.safetensors")
    model = language_model(seed=5)
    pair = ArgsDecoder(language_model(), Classifier(model, head=str(tmp_path / "h.safetensors")))
    head = lambda hidden: hidden @ weight[0] + bias  # noqa: E731
    decode(pair, tokens(9), lambda ids: last(model, ids, head).item())
    with refuses(RewardHeadError, "no such file"):
        Classifier(model, head=tmp_path / "absent.safetensors")
    save_file({"a": weight, "b": weight.clone()}, tmp_path / "two.safetensors")
    with refuses(RewardHeadError, "one weight matrix"):
        Classifier(model, head=tmp_path / "two.safetensors")


def test_a_language_model_is_told_the_ways():
    other = language_model(seed=5)
    with refuses(RewardHeadError, "Autoregressive", "head='lm_head'", "labels=0"):
        Classifier(other)
    pair = ArgsDecoder(language_model(), Classifier(other, head="lm_head", labels=0))
    decode(pair, tokens(9), lambda ids: last(other, ids, other.lm_head)[0].item())
    with refuses(RewardHeadError, "head is 'nothing.here'", "lm_head"):
        Classifier(other, head="nothing.here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_folded_head_is_accumulated_in_float32(dtype):
    torch.manual_seed(3)
    config = CONFIGS["llama"]()
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.score = torch.nn.Linear(32, 3, bias=True)
    reward = Classifier(model.to(dtype), labels={0: 1.0, 2: -2.0})
    hidden = torch.randn(2, 5, 32).to(dtype)
    outputs = hidden.double() @ model.score.weight.double().T + model.score.bias.double()
    expected = outputs[..., 0] - 2 * outputs[..., 2]
    assert reward.head.rewards(hidden).double() == pytest.approx(expected.detach(), abs=1e-4)


def test_chains_are_preempted_and_resume():
    reward = Classifier(reward_model("opt"), closing_ids=[4, 5])
    reward.attach(decoder().engine.lm, None)
    engine = scheduler(rewards={"own": reward}, pages=5, rows=4)
    longer = [
        sequence(tokens(14, seed=i), max_new_tokens=40, k=4, weights={"own": 1.0}) for i in range(4)
    ]
    alone = []
    for one in longer:
        single = sequence(one.prompt, max_new_tokens=40, k=4, weights={"own": 1.0})
        run(scheduler(rewards={"own": reward}, pages=40), single)
        alone.append(single.ids)
    for one in longer:
        engine.submit(one)
    while engine.busy:
        engine.step()
    assert not any(one.error for one in longer)
    assert engine.stats.preemptions > 0
    assert [one.ids for one in longer] == alone


def test_the_plain_classifier_is_what_it_was():
    run(scheduler(pages=40), one := sequence(tokens(20), k=6))
    assert_as_alone(one)
