"""What a model's own forward gives for whole texts: what the engine is compared with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from args_fast.errors import RewardHeadError, UnsupportedModelError

OUTPUTS = ("logits", "rewards", "score")  # where reward models put their rewards


@torch.no_grad()
def own_outputs(model: PreTrainedModel, texts: Tensor, *, logits: bool) -> Tensor:
    """texts [B, T] -> the model's own logits [B, T, V], or last hidden states [B, T, H]. Raises
    UnsupportedModelError where it does not run on them."""
    try:
        if logits:
            return model(input_ids=texts, use_cache=False).logits
        return model.base_model(input_ids=texts, use_cache=False).last_hidden_state
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on a text of {texts.shape[1]} tokens "
            f"({type(error).__name__}: {error}); check its config.json."
        ) from error


@torch.no_grad()
def own_reward(
    model: PreTrainedModel, ids: Sequence[int], fold: Mapping[int, float] | None = None
) -> Tensor:
    """r of one text as the reward model itself gives it, f32 without dimensions.

    The text is a batch of one without padding, so no token of it is taken for padding, not even one
    that has the padding token's id. A model that gives a value for every token is read at the last.

    Args:
        model: in eval mode.
        ids: of the text, at least one.
        fold: the weight of each output of a head with several; None for the only one.

    Raises:
        RewardHeadError: the model does not run on the text, or gives no single number.
    """
    name = f"the reward model ({type(model).__name__})"
    text = torch.tensor([list(ids)], device=model.device)
    try:
        with without_padding(model):
            out = model(input_ids=text)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RewardHeadError(
            f"{name} does not run on a text of {len(ids)} tokens ({type(error).__name__}: {error})"
            "; use one whose forward takes input_ids and gives logits."
        ) from error
    values = next((v for n in OUTPUTS if (v := getattr(out, n, None)) is not None), None)
    if values is None:
        raise RewardHeadError(f"{name} gives none of {', '.join(OUTPUTS)}; use a classifier.")
    last = values[0, -1] if values.dim() == 3 else values[0]
    if fold is not None:
        return torch.stack([last[i].float() * share for i, share in fold.items()]).sum()
    if values.dim() == 2 and last.numel() == len(ids):
        last = last[-1]
    if last.numel() != 1:
        raise RewardHeadError(
            f"{name} gives {tuple(values.shape)} values for one text; a reward is one number. Use "
            "a model with num_labels=1, or a function that makes one number of them."
        )
    return last.float().reshape(())


@contextmanager
def without_padding(model: PreTrainedModel) -> Iterator[None]:
    """No token of a text is taken for padding, not even one that has the padding token's id."""
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    before = [(c, c.pad_token_id) for c in configs if hasattr(c, "pad_token_id")]
    try:
        for config, _ in before:
            # Past the checks of configurations that take no None here.
            object.__setattr__(config, "pad_token_id", None)
        yield
    finally:
        for config, pad in before:
            object.__setattr__(config, "pad_token_id", pad)
