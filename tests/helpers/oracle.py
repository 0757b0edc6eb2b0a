"""A second naive decoder: no code of the package, and it tells how close its choices were.

A step's candidates go through the reward model together, as whole texts of one length. That this is
what each gives alone is shown where ``reference.decode``, which takes them one by one, is compared.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Decode:
    tokens: list
    logprobs: list
    rewards: list
    scores: list
    # The smallest gap between two alternatives at any step, of logits or of choices; the latter in
    # units of what an error in the reward does to them.
    margin: float


@torch.no_grad()
def decode(lm, rm, prompt, *, k, w, steps, temperature=None, seed=0, eos=(), every=1, certain=None):
    """Whole-text forwards, numpy in float64 from the logits and rewards on."""
    noise = np.zeros((steps, k))
    if temperature is not None:
        generator = torch.Generator().manual_seed(seed)
        exponential = torch.empty(steps, k).exponential_(generator=generator)
        noise = -np.log(exponential.numpy())
    text, out = list(prompt), Decode([], [], [], [], np.inf)
    for t in range(steps):
        logits = lm(torch.tensor([text])).logits[0, -1].double().numpy()
        shifted = logits - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
        # Sampling gives each place in the order a draw of its own, so the whole order matters then.
        compared = order[: k + 1] if temperature is not None else order[k - 1 : k + 1]
        out.margin = min(out.margin, *-np.diff(logits[compared]), np.inf)
        candidates = order[:k]
        likeliest = np.exp(logprobs[order[0]])
        skips = t % every > 0 or (certain is not None and likeliest >= certain)
        if certain is not None:
            out.margin = min(out.margin, abs(likeliest - certain))
        if k == 1 or w == 0 or skips:
            values = np.full(k, np.nan)
        else:
            values = np.array(rewards(rm, [[*text, v] for v in candidates]))
        lm_scores = logprobs[candidates]
        scores = lm_scores if w == 0 or skips else lm_scores + w * values
        keys = lm_scores if k == 1 else scores / (temperature or 1.0) + noise[t]
        choice = int(np.argmax(keys))
        if k > 1:
            second, best = sorted(keys)[-2:]
            out.margin = min(out.margin, (best - second) * (temperature or 1.0) / max(1, abs(w)))
        text.append(candidates[choice])
        out.tokens.append(candidates[choice])
        out.logprobs.append(lm_scores[choice])
        out.rewards.append(values[choice])
        out.scores.append(scores[choice])
        if text[-1] in eos:
            break
    return out


def reward(rm, text):
    """What a model's own forward gives for the text alone, where nothing counts as padding; or what
    a function of its ids gives."""
    return rewards(rm, [text])[0]


def rewards(rm, texts):
    """Of several texts of one length. A function may have ``many``, which takes them together."""
    if not isinstance(rm, torch.nn.Module):
        return rm.many(texts) if hasattr(rm, "many") else [rm(text) for text in texts]
    configs = [rm.config, *(getattr(rm.config, part, None) for part in rm.config.sub_configs)]
    padding = None if len(texts) == 1 else -1  # no id: transformers wants one for several texts
    with ExitStack() as stack:
        for config in filter(lambda c: hasattr(c, "pad_token_id"), configs):
            # Past the checks of configurations that take no None here.
            stack.callback(object.__setattr__, config, "pad_token_id", config.pad_token_id)
            object.__setattr__(config, "pad_token_id", padding)
        ids = torch.tensor(texts)
        output = rm(ids, attention_mask=torch.ones_like(ids))
    # [n, 1]; or a value for every token [n, T, 1], of which the last is the whole text's
    return output["logits"].reshape(len(texts), -1)[:, -1].double().tolist()
