"""Whatever depends on the length of a text is proved on both sides, or refused with its field."""

import copy
import math

import mutants
import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import CONFIGS, language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig, ops, reference
from args_fast.errors import LengthError, LoadError, ProofError
from args_fast.models import proof
from args_fast.models.backbone import Backbone
from args_fast.models.limits import LONGEST_PROOF, limits
from args_fast.ops import backends

CONFIG = DecodingConfig(k=5, max_new_tokens=3, eos_token_ids=[])
LONG = 2000  # positions of the models here


def config(**fields):
    found = CONFIGS["llama"]()
    found.max_position_embeddings = LONG
    for name, value in fields.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("fields", "thresholds"),
    [
        ({}, ()),
        ({"floor_scale": 100}, (100,)),
        ({"index_topk": 30, "index_block_size": 8}, (8, 30)),
        ({"sparse_config": {"dense_len": 300, "kernel_size": 32, "topk": 64}}, (64, 300)),
        ({"local_attention_lengths": [64, 512]}, (64,)),
        ({"floor_scale": 50.0}, (50,)),
        ({"compress_rates": {"a_compress_ratio": 4}}, (4,)),
        # what is not a length
        ({"moe_topk": 4, "topk_group": 8, "top_k": 50, "sparse_attention": True}, ()),
        ({"chunk_size_feed_forward": 9, "window_pattern": 6, "router_floor": 5}, ()),
        ({"quantization_config": {"block_size": 64}, "vision_config": {"window": 7}}, ()),
    ],
    ids=str,
)
def test_fields_that_are_lengths(fields, thresholds):
    assert limits(config(**fields), []) == limits(config(), thresholds)
    assert limits(config(**fields), []).thresholds == thresholds


def test_windows_that_the_attention_gets_are_thresholds_but_no_limit():
    found = limits(config(), [7, 4096])
    assert found.thresholds == (7,)
    assert found.max_length == LONG


@pytest.mark.parametrize(
    ("rope", "limit", "said"),
    [
        ({"rope_type": "default"}, LONG, ""),
        ({"rope_type": "linear", "factor": 4.0}, LONG, ""),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 700}, LONG, ""),
        (
            {"rope_type": "yarn", "llama_4_scaling_beta": 0.1, "factor": 2.0}
            | {"original_max_position_embeddings": 700},
            700,
            "llama_4_scaling_beta",
        ),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}, 64, ""),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 64, "'longrope'"),
        ({"sliding": {"rope_type": "dynamic", "original_max_position_embeddings": 9}}, 9, "9"),
    ],
    ids=str,
)
def test_rotary_embeddings(rope, limit, said):
    given = config()
    object.__setattr__(given, "rope_parameters", rope)
    found = limits(given, [])
    assert found.max_length == limit
    assert said in found.reason
    assert bool(found.reason) == (limit < LONG)


def test_a_model_without_a_number_of_positions_has_no_limit():
    given = config()
    object.__setattr__(given, "max_position_embeddings", None)
    assert limits(given, []).max_length == math.inf


# ---- a request beyond a limit --------------------------------------------------------------------


def short(name, value, model=language_model):
    found = copy.deepcopy(model().config)
    found.max_position_embeddings = LONG
    setattr(found, name, value)
    torch.manual_seed(1)
    kind = t.AutoModelForCausalLM if model is language_model else None
    return (kind or t.AutoModelForSequenceClassification).from_config(found).eval()


@pytest.mark.parametrize("model", [language_model, reward_model])
def test_a_text_beyond_a_long_threshold_is_refused_with_the_field(model):
    name, value = "attn_floor_scale", LONGEST_PROOF + 100
    damaged = short(name, value, model)
    plain = short("other", 0, reward_model if model is language_model else language_model)
    pair = ArgsDecoder(*((damaged, plain) if model is language_model else (plain, damaged)))
    assert pair.generate(tokens(9), CONFIG)
    with refuses(LengthError, f"takes {value}", f"{name} = {value}", "Shorten"):
        pair.generate(tokens(value - 2), CONFIG)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_beyond_its_original_length_is_refused_with_the_field(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    rope |= {"original_max_position_embeddings": 32}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    lm = short("rope_parameters", rope)
    pair = ArgsDecoder(lm, reward_model())
    said = (f"rope_type '{kind}'", "original_max_position_embeddings = 32", "takes 32")
    with refuses(LengthError, "language model", *said):
        pair.generate(tokens(30), CONFIG)
    (result,) = pair.generate(tokens(29), CONFIG)
    expected = reference.decode(lm, reward_model(), tokens(29), CONFIG)
    assert result.token_ids == expected.token_ids


# ---- the proof -----------------------------------------------------------------------------------


def counting(lm, above):
    """A language model that scales its attention by the place of a row in the pass, not in the
    text, from some length on."""

    class Tempered(t.models.llama.modeling_llama.LlamaAttention):
        def forward(self, hidden_states, **options):
            places = torch.arange(hidden_states.shape[1])
            scale = torch.where(places >= above, 1.5, 1.0)[:, None]
            return super().forward(hidden_states * scale, **options)

    for layer in lm.model.layers:
        layer.self_attn.__class__ = Tempered
    return lm


@pytest.mark.parametrize("above", [20, 100, 500])
def test_what_sets_in_at_a_short_threshold_is_noticed(above):
    lm = counting(short("attn_scale_floor", above), above)
    with refuses(ProofError, "the language model", f"a shared prefix (of {above + 3} tokens)"):
        ArgsDecoder(lm, reward_model())


def test_it_is_wrong_where_no_field_says_so():
    # The other side of the test above: without the field it would not be looked for.
    lm = counting(short("unheard_of", 100), 100)
    prompt = tokens(110)
    (result,) = ArgsDecoder(lm, short("x", 0, reward_model)).generate(prompt, CONFIG)
    expected = reference.decode(lm, short("x", 0, reward_model), prompt, CONFIG)
    assert result.logprobs != pytest.approx(expected.logprobs, abs=1e-3)


@pytest.mark.parametrize("window", [7, 40, 130, 512])
@pytest.mark.parametrize("logits", [True, False])
def test_a_window_is_proved_on_both_sides(monkeypatch, window, logits):
    given = CONFIGS["mistral"]()
    given.sliding_window, given.max_position_embeddings = window, LONG
    torch.manual_seed(1)
    backbone = Backbone(t.AutoModelForCausalLM.from_config(given).eval(), "language model")
    seen = []
    compare = proof._compare
    monkeypatch.setattr(proof, "_compare", lambda *given: (seen.append(given[-1]), compare(*given)))
    proof.prove(backbone, logits=logits)
    assert seen == sorted(seen)
    assert set(seen) == {5, window + 3}


@pytest.mark.parametrize("window", [130, 500])
def test_an_engine_that_forgets_a_long_window_is_noticed(monkeypatch, window):
    given = CONFIGS["mistral"]()
    given.sliding_window, given.max_position_embeddings = window, LONG
    torch.manual_seed(1)
    lm = t.AutoModelForCausalLM.from_config(given).eval()
    table = backends.TABLE["cpu"]["branch_attention"]
    monkeypatch.setitem(table, "torch", mutants.forgets_the_window)
    with ops.use_backend("torch"), refuses(ProofError, f"(of {window + 3} tokens)"):
        ArgsDecoder(lm, reward_model())


def test_a_threshold_beyond_the_context_costs_nothing(monkeypatch):
    lm = short("attn_scale_floor", 400)
    lm.config.max_position_embeddings = 96
    lengths = proof._lengths(Backbone(lm, "language model"))
    assert lengths == [5]


@pytest.mark.parametrize(("positions", "lengths"), [(2, []), (3, [1]), (6, [4]), (9, [5])])
def test_a_short_context_is_proved_as_far_as_it_reaches(positions, lengths):
    lm = short("max_position_embeddings", positions)
    assert proof._lengths(Backbone(lm, "language model")) == lengths
    proof.prove(Backbone(lm, "language model"), logits=True)


@pytest.mark.parametrize("positions", [-1, -96])
def test_positions_that_no_model_has_are_refused(positions):
    with refuses(LoadError, f"max_position_embeddings is {positions}", "1 or more"):
        limits(config(max_position_embeddings=positions), [])
