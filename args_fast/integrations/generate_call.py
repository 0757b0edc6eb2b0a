"""What ``generate`` hands to a decoding loop, checked and brought to the engine's terms."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from args_fast.config import DecodingConfig
from args_fast.errors import ConfigError, PromptError

# Fields of a GenerationConfig that ask for another algorithm or another result, and the values,
# besides None, that do not.
OTHER_ALGORITHMS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}
# The same, where do_sample is True.
OTHER_SAMPLING: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
CACHES = ("cache", "past_key_values")  # its name in newer and older versions of transformers
WITHOUT_EFFECT = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", *CACHES}


def check(
    generation: GenerationConfig, decoding: DecodingConfig, model_kwargs: dict[str, Any]
) -> None:
    """Raises ConfigError where ``generate`` was asked for something that the loop does not do."""
    fields = OTHER_ALGORITHMS | (OTHER_SAMPLING if generation.do_sample else {})
    for name, neutral in fields.items():
        value = getattr(generation, name, None)
        if value is not None and value not in neutral:
            raise ConfigError(f"{name} is {value!r}, which reward_guided does not do; leave it out")
    top_k = generation.top_k if generation.do_sample else None
    if top_k and top_k < decoding.k:
        raise ConfigError(
            f"top_k of generate is {top_k} and k of reward_guided is {decoding.k}, which is the "
            f"number of candidates; set k={top_k}, or top_k=None"
        )
    for name, value in model_kwargs.items():
        if name not in WITHOUT_EFFECT and value is not None:
            raise ConfigError(f"{name} is not supported by reward_guided; leave it out")
        if name in CACHES and value is not None and value.get_seq_length():
            raise ConfigError(
                f"{name} holds tokens already, and the engine has a cache of its own; leave it out "
                "and give the whole prompt"
            )


def prompts(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[list[int]]:
    """The prompts without their padding.

    Args:
        input_ids: [B, T].
        model_kwargs: of ``generate``, with ``attention_mask`` [B, T] where something is padded.

    Raises:
        PromptError: padding is not on the left, or positions are not those of the tokens.
    """
    mask = model_kwargs.get("attention_mask")
    seen = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    if seen.shape != input_ids.shape or bool(
        (seen.diff(dim=1) < 0).any() | (seen[:, -1] == 0).any()
    ):
        raise PromptError(
            "attention_mask is not ones with zeros on their left only; pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        own = seen.long().cumsum(1) - 1
        if bool(((positions.to(own.device) != own) & (seen == 1)).any()):
            raise PromptError("position_ids do not count the tokens of each prompt; leave them out")
    return [row[kept.bool()].tolist() for row, kept in zip(input_ids, seen, strict=True)]


def config(
    decoding: DecodingConfig, generation: GenerationConfig, new_tokens: int
) -> DecodingConfig:
    """The options of every row but its seed. Raises ConfigError."""
    sampling: dict[str, Any] = {}
    if generation.do_sample:
        sampling["temperature"] = 1.0 if generation.temperature is None else generation.temperature
        sampling["top_p"] = None if generation.top_p in (None, 1) else generation.top_p
        sampling["min_p"] = generation.min_p
    wants_scores = bool(generation.return_dict_in_generate and generation.output_scores)
    return replace(
        decoding,
        max_new_tokens=new_tokens,
        eos_token_ids=(),
        return_candidates=wants_scores,
        **sampling,
    )


def end_tokens(criteria: StoppingCriteriaList) -> frozenset[int]:
    """Ids that end a sequence, by its stopping criteria."""
    tensors = [c.eos_token_id for c in criteria if hasattr(c, "eos_token_id")]
    return frozenset(token for tensor in tensors for token in tensor.flatten().tolist())
