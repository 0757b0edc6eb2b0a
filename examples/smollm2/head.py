"""A linear value head on the frozen language model.

It is fitted to conversations that the LoRA reward model has not seen, so that it can judge what
that guides. As a guide it costs no pass of its own: the language model's hidden states are there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from every_token import margins
from figures import batches
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the logistic regression, smaller is simpler
FOLDS = 5


@dataclass(frozen=True)
class Features:
    """What the hidden states of preferred answers differ by: of whole answers, and after every
    fourth token.

    differences: [rows, H]; weights: of the rows, a pair's prefixes as much as its end, [rows];
    pairs: the index of each row's pair, [rows]; mean: the mean hidden state, [H].
    """

    differences: Tensor
    weights: Tensor
    pairs: Tensor
    mean: Tensor


@torch.inference_mode()
def differences(model: Any, data: Dataset) -> Features:
    rows, weights, pairs, means = [], [], [], []
    count = 0
    for _, ids, mask in batches(data):
        hidden = hidden_states(model, ids, mask)
        means.append(hidden[mask.bool()].mean(0))
        lead, both, end = margins(hidden, ids, mask)
        for row in range(len(end)):
            prefixes = lead[row][both[row]][3::4]
            rows += [end[row][None], prefixes]
            weights += [0.5] + [0.5 / max(len(prefixes), 1)] * len(prefixes)
            pairs += [count] * (1 + len(prefixes))
            count += 1
    mean = torch.stack(means).mean(0)
    return Features(torch.cat(rows), torch.tensor(weights), torch.tensor(pairs), mean)


def fit(features: Features) -> tuple[Tensor, float]:
    """The weight [H] that the pairwise logistic loss gives, and its strength, which is the best of
    STRENGTHS on folds of the pairs."""
    weights, folds = features.weights, features.pairs % FOLDS
    scale = features.differences.std(0)
    x = features.differences / scale

    def correct(strength: float) -> float:
        right = 0.0
        for fold in range(FOLDS):
            weight = _fit(x[folds != fold], weights[folds != fold], strength)
            right += ((x[folds == fold] @ weight > 0) * weights[folds == fold]).sum().item()
        return right

    strength = max(STRENGTHS, key=correct)
    return _fit(x, weights, strength) / scale, strength


def _fit(x: Tensor, weights: Tensor, strength: float) -> Tensor:
    mirrored = torch.cat([x, -x]).numpy()
    labels = [1] * len(x) + [0] * len(x)
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(mirrored, labels, sample_weight=torch.cat([weights, weights]).numpy())
    return torch.from_numpy(model.coef_[0]).float()


def save(weight: Tensor, mean: Tensor, path: Path) -> None:
    """Tensors ``weight`` [1, H] and ``bias`` [1], which puts the mean reward at 0."""
    bias = -(weight @ mean)[None]
    save_file({"weight": weight[None].contiguous(), "bias": bias}, path)


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    float32: Tensor = hidden.float()
    return float32
