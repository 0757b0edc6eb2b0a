"""Rewards that judge drafts give the tokens and rewards of no drafts; the others are refused."""

import copy
import functools

import lora
import pytest
import torch
from drafters import SCRIPTS, Scripted, always, make
from encoders import encoder
from refusals import refuses
from tiny_models import decoder, language_model, reward_model, tokens
from traffic import run, scheduler, sequence
from vocabularies import byte_level, wordpiece

from args_fast import ArgsDecoder, DecodingConfig, Token
from args_fast.drafting import NGrams
from args_fast.errors import ConfigError, NonFiniteError
from args_fast.rewards import Adapter, Autoregressive, Classifier, Function, Head, Mixture, Text

QUESTION = [{"role": "user", "content": "cab face"}]
CHATML = (
    "{% for m in messages %}<s>{{ m.role[0] }}.{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>a.{% endif %}"
)
ENDS = tuple(range(3, 9))  # so that some candidates are end tokens


def head():
    torch.manual_seed(0)
    return torch.nn.Linear(32, 1)


def chat():
    tokenizer = copy.deepcopy(byte_level())
    tokenizer.chat_template = CHATML
    return Classifier(reward_model("opt"), tokenizer, name="chat")


def adapter(lm, **options):
    """On the language model's weights; with dora in a model of its own."""
    closing = options.pop("closing_ids", None)
    return Adapter(lora.adapted(language_model(lm), **options), closing_ids=closing)


KINDS = {
    "closing ids": lambda lm: {"r": Classifier(reward_model("gpt2"), closing_ids=[4, 5, 6])},
    "template": lambda lm: {"r": chat()},
    "head": lambda lm: {"r": Head(head())},
    "mlp": lambda lm: {"r": Head(torch.nn.Sequential(head(), torch.nn.Tanh()))},
    "adapter": lambda lm: {"r": adapter(lm)},
    "merged adapter": lambda lm: {"r": adapter(lm, use_dora=True)},
    "several": lambda lm: {
        "r": Classifier(reward_model()),
        "h": Head(head()),
        "c": Classifier(reward_model("qwen3"), closing_ids=[4]),
        "a": adapter(lm, closing_ids=[5, 6]),
    },
    "some ids": lambda lm: {
        "r": Classifier(reward_model(), known=torch.arange(61) % 4 > 0),
    },
}


@functools.cache
def rewards(kind, lm):
    made = KINDS[kind](lm)
    for reward in made.values():
        reward.attach(decoder(lm).engine.lm, byte_level())
    for one in made.values():
        if isinstance(one, Adapter):
            assert one.shares_weights == (kind != "merged adapter")
    return made


def engine_of(kind, lm, **options):
    pair = decoder(lm)
    return scheduler(pair, rewards(kind, lm), pages=40, **options)


def requests(kind, lm, **options):
    """Three texts of their own, of which one is a conversation."""
    made = []
    for i, length in enumerate((12, 1, 30)):
        weights = dict.fromkeys(rewards(kind, lm), 1.0 + i / 4) if kind == "several" else {}
        text = tokens(length, seed=i)
        one = sequence(text, decoder(lm), weights or {"r": 1.0}, max_new_tokens=10, **options)
        one.messages = QUESTION if i == 0 else None
        made.append(one)
    return made


def answered(requests):
    """The responses of requests, for a script."""
    answers = {tuple(one.prompt): one.response for one in requests}
    return lambda prompt, config: answers[prompt]


def same(drafted, plain):
    assert drafted.error is None, drafted.error
    ours, theirs = drafted.generation(), plain.generation()
    assert ours.token_ids == theirs.token_ids
    assert ours.finish_reason == theirs.finish_reason
    for field in ("logprobs", "rewards", "scores"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), abs=1e-4, nan_ok=True)
    for name, values in (theirs.rewards_by_name or {}).items():
        assert ours.rewards_by_name[name] == pytest.approx(values, abs=1e-4)
    for left, right in zip(ours.candidates or [], theirs.candidates or [], strict=True):
        assert [c.token_id for c in left] == [c.token_id for c in right]
        assert [c.reward for c in left] == pytest.approx([c.reward for c in right], abs=1e-4)


OPTIONS = {
    "argmax": {"k": 5, "w": 3.0},
    "draws": {"k": 6, "w": 2.0, "temperature": 0.7, "seed": 3, "return_candidates": True},
    "ends": {"k": 5, "w": 3.0, "eos_token_ids": ENDS},
    "narrowed": {"k": 9, "w": 3.0, "top_p": 0.8, "return_candidates": True},
}


# gemma2's logits are not its output layer's alone, which matters to those that read with it.
PAIRS = [(kind, "llama") for kind in KINDS]
PAIRS += [(kind, "gemma2") for kind in ("head", "mlp", "adapter", "several")]


@pytest.mark.parametrize(("kind", "lm"), PAIRS)
def test_rewards_judge_drafts_as_they_judge_steps(kind, lm):
    for name, options in OPTIONS.items():
        plain = run(engine_of(kind, lm), *requests(kind, lm, **options))
        for script in SCRIPTS if name == "argmax" else ("perfect", "adversarial"):
            drafts = Scripted(answered(plain), SCRIPTS[script], 3)
            engine = engine_of(kind, lm, drafts=drafts)
            drafted = run(engine, *requests(kind, lm, **options))
            for ours, theirs in zip(drafted, plain, strict=True):
                same(ours, theirs)
            assert all(pool.pages_in_use == 0 for pool in engine.scheduler.pools), name
            if script == "perfect":
                assert sum(one.accepted for one in drafted) > 5, name


def test_preemption_with_pages_of_several_groups():
    made = rewards("template", "llama")
    plain = scheduler(rewards=made, pages=60, rows=4)
    options = {"k": 4, "max_new_tokens": 30, "weights": {"r": 1.0}}
    alone = run(plain, *(sequence(tokens(14, seed=i), **options) for i in range(4)))
    drafts = Scripted(answered(alone), SCRIPTS["adversarial"], 3)
    engine = scheduler(rewards=made, pages=6, rows=4, drafts=drafts)
    drafted = run(engine, *(sequence(tokens(14, seed=i), **options) for i in range(4)))
    assert engine.stats.preemptions > 0
    for ours, theirs in zip(drafted, alone, strict=True):
        same(ours, theirs)
    assert engine.stats.accepted_tokens > 10


# ---- those that cannot ---------------------------------------------------------------------------


def shorter(prompts, responses):
    return [-float(len(r)) for r in responses]


REFUSED = {
    "function": lambda: Function(shorter, name="mine"),
    "text": lambda: Text(encoder("bert"), wordpiece(), name="mine"),
    "autoregressive": lambda: Autoregressive(language_model("opt"), name="mine"),
    "mixture": lambda: Mixture([(Classifier(reward_model()), 1.0), (Function(shorter), 0.1)]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_rewards_refuse_drafts_by_name(kind):
    make_pair = functools.partial(ArgsDecoder, language_model(), tokenizer=byte_level())
    name = "shorter" if kind == "mixture" else "mine"
    with refuses(ConfigError, "draft is 'ngram'", name, "draft=None", "rewards.Classifier"):
        make_pair(REFUSED[kind](), draft="ngram")
    pair = make_pair(REFUSED[kind](), draft="auto")
    result = pair.generate([5, 6, 7], DecodingConfig(k=3, max_new_tokens=3))[0]
    assert result.drafted is None


# ---- faults --------------------------------------------------------------------------------------


@torch.no_grad()
def broken(kind):
    """A reward that was whole when it was loaded, and is not finite for any text."""
    lm = decoder().engine.lm
    if kind == "adapter":
        reward = adapter("llama")
    else:
        reward = Head(head()) if kind == "head" else Classifier(copy.deepcopy(reward_model()))
    reward.attach(lm, None)
    if kind == "adapter":  # through the modules: the fused layers have the terms in their own form
        reward.backbone.fused = False
        next(iter(reward.adapted.terms.by_layer.values())).b[0, 0] = torch.nan
    else:
        reward.head.module.weight[0, 0] = torch.inf
    return reward


@pytest.mark.parametrize("kind", ["classifier", "head", "adapter"])
def test_a_value_that_is_not_finite_is_the_error_of_no_drafts(kind):
    reward, errors = broken(kind), []
    for drafts in (None, make("ngram", None)):
        engine = scheduler(rewards={"reward": reward}, pages=40, drafts=drafts)
        (one,) = run(engine, sequence([5, 6, 5, 6, 5, 6, 5], k=3))
        assert isinstance(one.error, NonFiniteError)
        assert not one.tokens
        errors.append(str(one.error))
    assert errors[0] == errors[1]


@torch.no_grad()
def likeliest(text, k):
    return language_model()(torch.tensor([text])).logits[0, -1].topk(k).indices.tolist()


def test_a_fault_beyond_the_text_is_not_its_fault():
    """A token whose reward is NaN is a candidate after a wrong draft only."""
    options = {"k": 3, "max_new_tokens": 10, "return_candidates": True}
    (plain,) = run(scheduler(pages=40), sequence(tokens(9), **options))
    seen = {c.token_id for token in plain.tokens for c in token.candidates} | set(plain.ids)
    first, second = plain.tokens[:2]
    wrong, poison = next(
        (c.token_id, v)
        for c in second.candidates
        for v in likeliest([*tokens(9), first.token_id, c.token_id], 3)
        if c.token_id != second.token_id and v not in seen
    )
    rm = copy.deepcopy(reward_model())
    with torch.no_grad():
        rm.model.embed_tokens.weight[poison] = torch.nan
    drafts = Scripted(
        lambda prompt, config: plain.response,
        lambda draft, chance: [draft[0], wrong, *draft[2:]] if len(draft) == 4 else draft,
        4,
    )
    engine = scheduler(rewards={"reward": Classifier(rm)}, pages=40, drafts=drafts)
    (one,) = run(engine, sequence(tokens(9), **options))
    same(one, plain)


def test_a_drafter_that_fails_ends_its_own_request():
    def fails(draft, chance):
        raise ArithmeticError("no idea")

    plain = run(scheduler(pages=40), sequence(tokens(9), k=3), sequence(tokens(12), k=3, every=2))
    drafts = Scripted(answered(plain), fails, 3)
    engine = scheduler(pages=40, drafts=drafts)
    ours = [sequence(tokens(9), k=3), sequence(tokens(12), k=3, every=2)]
    run(engine, *ours)
    assert isinstance(ours[0].error, ArithmeticError)
    same(ours[1], plain[1])  # which is not drafted
    assert engine.pool.pages_in_use == 0


# ---- the front -----------------------------------------------------------------------------------


def test_logits_processors_are_obeyed_along_a_draft():
    def scold(ids, scores):  # depends on every id, and on their number
        scores = scores.clone()
        scores[:, (int(ids.sum()) + ids.shape[1]) % scores.shape[1]] += 4.0
        return scores

    config = DecodingConfig(k=4, max_new_tokens=16, eos_token_ids=[])
    pairs = [
        ArgsDecoder(language_model(), reward_model(), logits_processor=[scold], draft=draft)
        for draft in (None, always(NGrams(), 4))
    ]
    for prompt in ([5, 6, 7] * 4, tokens(9)):
        plain, drafted = (pair.generate(prompt, config)[0] for pair in pairs)
        assert drafted.token_ids == plain.token_ids
    assert pairs[1].engine.stats.drafted_tokens > 0


def test_what_a_processor_raises_beyond_the_text_is_ignored():
    answer = decoder().generate(tokens(9), DecodingConfig(k=4, max_new_tokens=8))[0].token_ids

    def picky(ids, scores):
        if ids[0, 9:].tolist() != answer[: ids.shape[1] - 9]:
            raise ValueError("not my text")
        return scores

    drafts = Scripted(lambda prompt, config: answer, SCRIPTS["adversarial"], 3)
    pair = ArgsDecoder(language_model(), reward_model(), logits_processor=[picky], draft=drafts)
    result = pair.generate(tokens(9), DecodingConfig(k=4, max_new_tokens=8))[0]
    assert result.token_ids == answer
    assert result.drafted > result.accepted > 0


def test_streams_and_stop_strings():
    options = {"lm": language_model(), "rm": reward_model(), "tokenizer": byte_level()}
    plain = ArgsDecoder(**options)
    config = DecodingConfig(k=4, max_new_tokens=24, eos_token_ids=[])
    free = plain.generate([5, 6, 7], config)[0]
    middle = free.text[len(free.text) // 2 :][:2]
    drafts = Scripted(lambda prompt, config: free.token_ids, SCRIPTS["perfect"], 5)
    pair = ArgsDecoder(**options, draft=drafts)
    stopping = DecodingConfig(k=4, max_new_tokens=24, eos_token_ids=[], stop=[middle])
    expected = plain.generate([5, 6, 7], stopping)[0]
    (result,) = pair.generate([5, 6, 7], stopping)
    assert (result.token_ids, result.text) == (expected.token_ids, expected.text)
    assert result.finish_reason == "stop"
    assert result.accepted > 0
    stream = list(pair.stream([5, 6, 7], stopping))
    assert all(isinstance(token, Token) for token in stream)
    assert "".join(token.text for token in stream) == expected.text
    for _ in pair.stream([5, 6, 7], stopping):
        break  # a stream that is closed in the middle frees its pages
    assert pair.cache.pages_in_use == 0


def test_lookahead_and_compile_exclude_drafts():
    for options in ({"lookahead": True}, {"torch_compile": True}):
        (name,) = options
        with refuses(ConfigError, "draft is 'ngram'", f"{name} is True", "one of the two"):
            ArgsDecoder(language_model(), reward_model(), draft="ngram", **options)
    with refuses(ConfigError, "draft is a int", "'history'", "small language model"):
        ArgsDecoder(language_model(), reward_model(), draft=3)
