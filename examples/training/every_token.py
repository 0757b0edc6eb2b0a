"""TRL's RewardTrainer with the pairwise loss at every token, for rewards that guide decoding.

ARGS asks for the reward of unfinished answers, so what r says of them has to be trained too. The
model is causal: its head at a token judges the text that ends there. So one pass over a pair trains
all its prefixes, and no prefix costs a row of its own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import RewardTrainer


class EveryTokenRewardTrainer(RewardTrainer):
    """RewardTrainer whose loss is the mean of the pairwise loss at the ends of the answers, and at
    the tokens up to which both answers go and differ."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        r = token_rewards(model, ids, mask)
        lead, both, end = margins(r, ids, mask)
        prefixes = (-logsigmoid(lead) * both).sum(-1) / both.sum(-1).clamp(min=1)
        loss = (prefixes - logsigmoid(end)).mean() / 2
        if self.args.center_rewards_coefficient is not None:
            # Pairs teach differences only; this keeps the rewards themselves around 0.
            loss = loss + self.args.center_rewards_coefficient * r[mask.bool()].square().mean()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["accuracy"].append((end > 0).float().mean().item())
        metrics["margin"].append(end.mean().item())
        return (loss, {"logits": end}) if return_outputs else loss


def token_rewards(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """r of every prefix of every row, [rows, T], in float32. The model may be a PEFT model."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    rewards: Tensor = model.score(hidden.last_hidden_state.float())[..., 0]
    return rewards


def margins(r: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the chosen answers lead by.

    Args:
        r: rewards (or features) of every prefix, chosen rows first, [2 B, T, ...].
        ids, mask: of the rows, padded on the right, [2 B, T].

    Returns:
        The leads after equally many tokens [B, T, ...], where both answers are under way and differ
        [B, T], and the leads of the whole answers [B, ...].
    """
    (r_w, r_l), (ids_w, ids_l), (mask_w, mask_l) = (x.chunk(2) for x in (r, ids, mask))
    apart = (ids_w != ids_l).cumsum(-1) > 0
    both = apart & mask_w.bool() & mask_l.bool()
    rows = torch.arange(len(r_w), device=r.device)
    ends = r_w[rows, mask_w.sum(-1) - 1] - r_l[rows, mask_l.sum(-1) - 1]
    return r_w - r_l, both, ends
