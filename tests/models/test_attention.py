"""The engine's attention stands in a model for one forward pass, and leaves no trace."""

import copy

import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import language_model, reward_model, tokens

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError, UnsupportedModelError
from args_fast.models.attention import NAME, driven

CONFIG = DecodingConfig(k=5, max_new_tokens=3, eos_token_ids=[])


def gemma3(implementation):
    text = language_model("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    special = {"image_token_index": 60, "boi_token_index": 59, "eoi_token_index": 58}
    config = t.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, **special
    )
    torch.manual_seed(3)
    model = t.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation=implementation
    )
    return model.eval()


def implementations(model):
    """Of the whole, of its parts, and of what every module holds."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    held = [module.config for module in model.modules() if hasattr(module, "config")]
    return [config._attn_implementation for config in [*configs, *held]]


MIXED = [
    "eager",
    {"text_config": "eager"},
    {"text_config": "sdpa", "vision_config": "eager"},
    {"": "eager", "vision_config": "sdpa"},
]


@pytest.mark.parametrize("implementation", MIXED, ids=str)
def test_every_part_gets_its_own_attention_back(implementation):
    lm = gemma3(implementation)
    before = implementations(lm)
    pair = ArgsDecoder(lm, reward_model())
    assert implementations(lm) == before
    stream = pair.stream(tokens(9), CONFIG)
    next(stream)
    assert implementations(lm) == before
    list(stream)
    assert implementations(lm) == before


@pytest.mark.parametrize("implementation", MIXED, ids=str)
def test_also_after_a_pass_that_raised(implementation):
    lm = gemma3(implementation)
    before = implementations(lm)

    def fails(*_):
        assert set(implementations(lm)) == {NAME}
        raise RuntimeError("out of order")

    lm.model.language_model.layers[1].register_forward_hook(fails)
    with pytest.raises(ArgsError, match="out of order"):
        ArgsDecoder(lm, reward_model())
    assert implementations(lm) == before
    with pytest.raises(KeyboardInterrupt), driven(lm):
        raise KeyboardInterrupt
    assert implementations(lm) == before


def test_attention_maps_can_be_had_as_before():
    lm = gemma3({"text_config": "eager"})
    text = torch.tensor([tokens(9)])
    before = lm(text, output_attentions=True).attentions
    ArgsDecoder(lm, reward_model()).generate(tokens(9), CONFIG)
    after = lm(text, output_attentions=True).attentions
    assert len(after) == 2
    assert all(map(torch.equal, after, before))


# ---- what the engine cannot follow ---------------------------------------------------------------


def with_attention(quirk):
    """A language model each of whose layers calls its attention as ``quirk`` says."""
    lm = copy.deepcopy(language_model())

    class Quirky(t.models.llama.modeling_llama.LlamaAttention):
        def forward(self, hidden_states, **options):
            return super().forward(hidden_states, **(options | quirk(hidden_states)))

    for layer in lm.model.layers:
        layer.self_attn.__class__ = Quirky
    return lm


def test_a_mask_of_its_own_is_refused():
    """Dynamic masks and sparse attention reach the attention in no other way."""

    def drops_far_keys(hidden):
        rows = torch.arange(hidden.shape[1])
        return {"attention_mask": torch.where(rows[:, None] - rows > 40, -torch.inf, 0.0)[None]}

    with refuses(UnsupportedModelError, "the language model", "mask of its own", "reference"):
        ArgsDecoder(with_attention(drops_far_keys), reward_model())


def test_a_mask_that_arrives_late_ends_the_request():
    lm = with_attention(
        lambda hidden: {"attention_mask": torch.ones(1, 1, 1)} if hidden.shape[1] > 60 else {}
    )
    pair = ArgsDecoder(lm, reward_model())
    with refuses(UnsupportedModelError, "mask of its own"):
        pair.generate(tokens(70), CONFIG)
    assert pair.generate(tokens(9), CONFIG)


def test_an_attention_that_is_not_causal_is_refused():
    with refuses(UnsupportedModelError, "the language model", "not causal"):
        ArgsDecoder(with_attention(lambda hidden: {"is_causal": False}), reward_model())
