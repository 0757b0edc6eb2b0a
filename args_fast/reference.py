"""Algorithm 1 of the ARGS paper (ICLR 2024), as printed: no cache, nothing clever.

This is what the engine is proved against. It shares no code with it: only the options, the result
type, ``own_reward``, which calls the reward model, and ``for_request``, which makes transformers'
logits processors. It runs the models through their own forward passes, over the whole text at every
step.
"""

from collections.abc import Callable
from typing import Literal

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from args_fast.config import DecodingConfig
from args_fast.errors import ConfigError, RewardHeadError
from args_fast.generation import FinishReason, Generation
from args_fast.models.forward import own_reward
from args_fast.models.processors import for_request

ScoreFunction = Callable[[list[list[int]]], list[float]]


@torch.no_grad()
def decode(
    lm: PreTrainedModel,
    rm: PreTrainedModel | ScoreFunction,
    prompt_token_ids: list[int],
    config: DecodingConfig,
    logits_processor: Literal["model"] | LogitsProcessorList | None = None,
) -> Generation:
    """Decode one prompt by reward-guided search, naively.

    Args:
        lm: causal language model, in eval mode.
        rm: what gives r. A sequence classifier with one label, in eval mode, whose own forward is
            run on every candidate's text alone; or a function from several texts (lists of ids) to
            their rewards, for everything else.
        prompt_token_ids: the context x, at least one id.
        config: the options; ``stop`` needs a tokenizer and is refused here.
        logits_processor: as for ArgsDecoder: log p is then that of the processed logits.

    Returns:
        The generation, with ``text`` None.

    Raises:
        RewardHeadError: rm does not give one number for each text.
    """
    if config.stop:
        raise ConfigError("the reference decoder works on ids and cannot look for stop strings")
    eos = _end_tokens(lm, config)
    request = prompt_token_ids, config.max_new_tokens, frozenset(eos)
    process = for_request(lm, logits_processor, *request)
    noise = config.noise()
    x = list(prompt_token_ids)
    logprobs, rewards, scores = [], [], []
    finish_reason: FinishReason = "length"

    for t in range(config.max_new_tokens):
        # V(k): the k most likely tokens; among equals the lower id first, which a stable sort
        # keeps.
        values, order = _logprobs(lm, x, process).sort(descending=True, stable=True)
        candidates, lm_scores = order[: config.k].tolist(), values[: config.k].cpu()

        # r([x, v]) for every v in V(k), and s(v) = log p(v | x) + w * r([x, v])   (eq. 2)
        # With ``every`` or ``certain`` some steps do without r: an approximation, not the paper's.
        skips = config.consults_reward and config.skips_reward(t, values[0].exp().item())
        if config.consults_reward and not skips:
            r = _rewards(rm, [[*x, v] for v in candidates])
        else:
            r = torch.full((config.k,), torch.nan)
        s = lm_scores if config.w == 0 or skips else lm_scores + config.w * r

        # argmax s(v), or a draw from softmax(s / tau) over V(k) (eq. 3) by the Gumbel-max trick.
        # The candidates stand in order of their logprobs, so the first maximum wins a tie.
        if config.k == 1:
            choice = 0
        elif config.temperature is None:
            choice = int(s.argmax())
        else:
            choice = int((s / config.temperature + noise[t]).argmax())

        x.append(candidates[choice])
        logprobs.append(lm_scores[choice].item())
        rewards.append(r[choice].item())
        scores.append(s[choice].item())
        if x[-1] in eos:
            finish_reason = "eos"
            break

    prompt, new = x[: len(prompt_token_ids)], x[len(prompt_token_ids) :]
    skipped = _skipped(rewards) if config.skips and config.consults_reward else None
    return Generation(new, None, logprobs, rewards, scores, finish_reason, prompt, skipped=skipped)


def _skipped(rewards: list[float]) -> float:
    return sum(reward != reward for reward in rewards) / len(rewards)


def _logprobs(
    lm: PreTrainedModel,
    x: list[int],
    process: Callable[[list[int], torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """log p(v | x) of every token v: [V] f32."""
    context = torch.tensor([x], device=lm.device)
    logits = lm(context, use_cache=False).logits[0, -1].float()
    return (logits if process is None else process(x, logits)).log_softmax(dim=0)


def _rewards(rm: PreTrainedModel | ScoreFunction, texts: list[list[int]]) -> torch.Tensor:
    if isinstance(rm, PreTrainedModel):
        return torch.stack([own_reward(rm, text).cpu() for text in texts])
    rewards = [float(value) for value in rm(texts)]
    if len(rewards) != len(texts):
        raise RewardHeadError(
            f"the score function gave {len(rewards)} rewards for {len(texts)} texts; it must give "
            "one for each"
        )
    return torch.tensor(rewards)


def _end_tokens(lm: PreTrainedModel, config: DecodingConfig) -> list[int]:
    if config.eos_token_ids is not None:
        return list(config.eos_token_ids)
    eos = lm.generation_config.eos_token_id if lm.generation_config else lm.config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
