"""Every baseline decodes what it says it decodes, so their times are times of the same work."""

import pytest
import torch
from tiny_models import decoder, tokens
from ways import rows_by_way

from args_fast import DecodingConfig
from args_fast.bench import baselines
from args_fast.bench.baselines import engine
from args_fast.bench.models import random_pair


@pytest.fixture(scope="module", params=["llama", "opt", "qwen3"])
def pair(request):
    return decoder(request.param, request.param)


def prompts(count, length=7):
    return [tokens(length, seed) for seed in range(count)]


def config(new_tokens, k, w):
    return DecodingConfig(max_new_tokens=new_tokens, k=k, w=w, eos_token_ids=[])


GREEDIES = [baselines.TRANSFORMERS, baselines.GREEDY]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GREEDIES)
def test_greedies_agree_with_taking_the_best_token_each_time(pair, name, batch):
    expected = []
    for prompt in prompts(batch):
        text = torch.tensor([prompt])
        for _ in range(12):
            with torch.no_grad():
                best = pair.language_model(text, use_cache=False).logits[:, -1].argmax(1)
            text = torch.cat([text, best[:, None]], dim=1)
        expected.append(text[0, len(prompt) :].tolist())
    assert baselines.METHODS[name](pair, prompts(batch), config(12, 5, 1.5)) == expected


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("k", "w"), [(2, 1.5), (7, 1.5), (5, -3.0), (10, 40.0)])
def test_k_copies_and_the_reference_give_our_tokens(pair, k, w, batch):
    ours = baselines.args(pair, prompts(batch), config(12, k, w))
    assert baselines.k_copies(pair, prompts(batch), config(12, k, w)) == ours
    assert baselines.naive(pair, prompts(batch), config(12, k, w)) == ours
    assert [len(ids) for ids in ours] == [12] * batch


def test_the_reward_changes_what_is_decoded(pair):
    assert baselines.args(pair, prompts(1), config(12, 10, 40.0)) != baselines.greedy(
        pair, prompts(1), config(12, 10, 40.0)
    )


def test_nothing_ends_at_an_end_token():
    """All logits are equal, so the lowest id is taken; and it is the end token."""
    pair = random_pair("tiny-llama", "tiny-llama")
    pair.language_model.lm_head.weight.data.zero_()
    pair.language_model.generation_config.eos_token_id = 0
    for name in GREEDIES:
        assert baselines.METHODS[name](pair, [[5, 6]], config(5, 3, 0.0)) == [[0] * 5]
    for name in (baselines.ARGS, baselines.K_COPIES, baselines.NAIVE):
        assert len(baselines.METHODS[name](pair, [[5, 6]], config(5, 3, 1.0))[0]) == 5


def test_a_static_cache_and_compile_change_no_token():
    pair = random_pair("tiny-llama", "tiny-llama")
    pair.language_model.model.embed_tokens.weight.data.mul_(50)
    for batch, length in ((1, 7), (2, 11)):
        texts = prompts(batch, length)
        expected = baselines.dynamic_greedy(pair, texts, config(9, 1, 0.0))
        for new_tokens in (9, 9, 1):  # compiled, again in the same cache, the first token alone
            got = baselines.static_greedy(pair, texts, config(new_tokens, 1, 0.0))
            assert got == [ids[:new_tokens] for ids in expected]


@pytest.mark.parametrize("name", baselines.ADAPTERS)
def test_an_adapter_is_on_the_language_models_own_weights(name):
    pytest.importorskip("peft")
    pair = random_pair("tiny-llama", "tiny-llama")
    before = [p.clone() for p in pair.language_model.parameters()]
    decoded = baselines.METHODS[name](pair, prompts(2), config(5, 3, 1.5))
    assert [len(ids) for ids in decoded] == [5, 5]
    ((_, decoder),) = engine._variants[pair].values()
    (reward,) = decoder.engine.panel.rewards.values()
    assert reward.shares_weights
    assert (reward.adapted.fused is True) == (name == baselines.ADAPTER_FUSED)
    assert all(map(torch.equal, before, pair.language_model.parameters()))


@pytest.mark.parametrize("refused", ["language", "reward"])
def test_layers_that_are_not_fused_have_no_figure(refused):
    pair = random_pair("tiny-llama", "tiny-llama")
    (reward,) = pair.engine.panel.rewards.values()
    backbone = reward.backbone if refused == "reward" else pair.engine.lm
    backbone.fused = True
    backbone.drop_fused_layers()
    with pytest.raises(RuntimeError, match="the layers are not fused"):
        baselines.args(pair, prompts(1), config(2, 3, 1.5))


def test_a_step_that_was_not_captured_has_no_figure():
    pair = random_pair("tiny-opt", "tiny-opt")
    pair.engine.bursts.runner("reward").graphs.failure = "RuntimeError: not permitted"
    with pytest.raises(RuntimeError, match=r"not captured as a graph: .*not permitted"):
        baselines.args(pair, prompts(1), config(2, 3, 1.5))


# ---- ours with options --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "name", [baselines.LOOKAHEAD, baselines.NO_LOOKAHEAD, baselines.ARGS_MODULES]
)
def test_options_change_no_token(pair, name, batch):
    expected = baselines.args(pair, prompts(batch), config(12, 5, 1.5))
    assert baselines.METHODS[name](pair, prompts(batch), config(12, 5, 1.5)) == expected


def test_modules_are_what_runs_where_they_are_named():
    pair = random_pair("tiny-llama", "tiny-llama")
    with rows_by_way() as rows:
        for name in (baselines.GREEDY_MODULES, baselines.ARGS_MODULES):
            baselines.METHODS[name](pair, prompts(2), config(3, 5, 1.5))
    assert rows["modules"]
    assert not rows["fused"]


def test_compiling_ours_changes_no_token():
    pair = decoder("llama", "llama")
    for name, plain in (
        (baselines.ARGS_COMPILED, baselines.args),
        (baselines.GREEDY_COMPILED, baselines.greedy),
    ):
        expected = plain(pair, prompts(2), config(9, 5, 1.5))
        assert baselines.METHODS[name](pair, prompts(2), config(9, 5, 1.5)) == expected
        assert baselines.METHODS[name](pair, prompts(2), config(1, 5, 1.5)) == [
            x[:1] for x in expected
        ]
    torch.compiler.reset()


def test_a_decoder_with_options_is_kept_between_calls():
    pair = decoder.__wrapped__()
    method = engine.with_options(baselines.args, max_batch_size=2)
    expected = baselines.args(pair, prompts(3), config(12, 5, 1.5))
    assert method(pair, prompts(3), config(12, 5, 1.5)) == expected

    def variant():
        (found,) = engine._variants[pair].values()
        return found[1]

    own = variant()
    assert own is not pair
    assert own.max_batch_size == 2
    assert own.language_model is pair.language_model
    assert method(pair, prompts(3), config(1, 5, 1.5)) == [ids[:1] for ids in expected]
    assert variant() is own
    assert method(pair, prompts(3), config(40, 5, 1.5))[0][:12] == expected[0]  # a larger cache
    assert variant() is not own


def test_a_decoder_with_options_has_a_cache_for_its_prompts_and_not_for_more(pair):
    few = engine.variant(pair, prompts(3), 12)
    assert few.cache.sequences(7 + 12) >= 3
    assert few.cache.tokens <= 3 * (32 + 2 * 16) + 16


@pytest.mark.parametrize("tokens_each", [1, 9, 10, 16, 80])
def test_a_sized_cache_never_makes_a_sequence_give_way(pair, tokens_each):
    small = engine.variant(pair, prompts(5), tokens_each)
    baselines.args(small, prompts(5), config(tokens_each, 5, 1.5))
    assert small.cache.preemptions == 0
