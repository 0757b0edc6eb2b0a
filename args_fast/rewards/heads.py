"""The head of a reward model: where it is, what its outputs are called, and how they become one
number."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from args_fast import ops
from args_fast.errors import ConfigError, RewardHeadError
from args_fast.models import checkpoint
from args_fast.models.forward import own_reward

# Under these names a reward model's head is looked for: transformers' own first.
NAMES = ("score", "v_head", "value_head", "reward_head", "rm_head", "classifier", "summary")

HeadLike = str | Path | nn.Module | None
Labels = int | str | Mapping[int | str, float] | None


@dataclass(frozen=True)
class RewardHead:
    """r of a hidden state.

    Attributes:
        module: gives the outputs of a hidden state.
        fold: the weight of each output in the reward; None for the only output.
        own: whether the model's own forward returns what this head gives, or should.
    """

    module: nn.Module
    fold: dict[int, float] | None
    own: bool

    # Weights are asked of the module each time: between decodes it is the caller's, to train.

    @property
    def linear(self) -> tuple[Tensor, Tensor | None] | None:
        """The weight [H] and bias [1] of a linear head, its outputs folded; None for another."""
        module = self.module
        if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
            return None
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        if self.fold is None:
            return weight[0], bias
        shares = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
        for i, share in self.fold.items():
            shares[i] = share
        return shares @ weight.float(), None if bias is None else shares @ bias.float()[:, None]

    def fused(self, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """``linear`` where ``ops.select`` takes it with these hidden states; else None."""
        linear = self.linear
        return linear if linear is not None and linear[0].dtype == hidden.dtype else None

    def rewards(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> rewards [...] f32; a linear head by the arithmetic of ``ops.select``,
        whatever the other rows are."""
        fused = self.fused(hidden)
        if fused is not None:
            rows = hidden.reshape(-1, 1, hidden.shape[-1])
            zeros = rows.new_zeros(rows.shape[0], 1, dtype=torch.float32)
            ones = rows.new_ones(rows.shape[0], dtype=torch.float32)
            _, rewards, _ = ops.select(rows, *fused, zeros, ones, ones, zeros)
            return rewards.view(hidden.shape[:-1])
        if (linear := self.linear) is not None:
            rewards = (hidden.float() * linear[0].float()).sum(-1)
            return rewards if linear[1] is None else rewards + linear[1].float()
        rows = hidden.reshape(-1, hidden.shape[-1])  # not every layer takes one row alone
        outputs: Tensor = self.module(rows).float().view(*hidden.shape[:-1], -1)
        if self.fold is None:
            return outputs[..., 0]
        return torch.stack([share * outputs[..., i] for i, share in self.fold.items()]).sum(0)


def find_head(model: PreTrainedModel, head: HeadLike, labels: Labels) -> RewardHead:
    """The head of a model.

    Args:
        model: the reward model.
        head: a dotted name of a module of the model, a module, or a safetensors file; None for the
            one that the model's class uses.
        labels: which output is the reward, or the weight of each; None for the only one.

    Raises:
        RewardHeadError: there is none, or it has several outputs and ``labels`` is None.
    """
    module, own = _module(model, head)
    outputs = _outputs(module, model)
    return RewardHead(module, fold_labels(model, outputs, labels), own)


def _module(model: PreTrainedModel, head: HeadLike) -> tuple[nn.Module, bool]:
    if isinstance(head, nn.Module):
        return head, False
    if isinstance(head, Path) or (isinstance(head, str) and head.endswith(".safetensors")):
        return _from_file(model, Path(head)), False
    if isinstance(head, str):
        try:
            return model.get_submodule(head), False
        except AttributeError as error:
            raise RewardHeadError(
                f"head is {head!r}, which the reward model ({type(model).__name__}) does not have; "
                f"it has {', '.join(name for name, _ in model.named_children())}"
            ) from error
    for name in NAMES:
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return module, name == "score" or _gives_reward(model)
    if model.get_output_embeddings() is not None:
        raise RewardHeadError(
            f"{type(model).__name__} is a language model without a reward head. For its log-"
            "probabilities as rewards use rewards.Autoregressive(model); for one of its outputs "
            "rewards.Classifier(model, head='lm_head', labels=0); for a head in a file "
            "rewards.Classifier(model, head='value_head.safetensors')."
        )
    raise RewardHeadError(
        f"the reward model ({type(model).__name__}) has no head under a usual name "
        f"({', '.join(NAMES)}); name it: rewards.Classifier(model, head='name of the module')"
    )


def _gives_reward(model: PreTrainedModel) -> bool:
    """Whether a model's own forward returns a reward, which its head alone may not be."""
    for fold in (None, {0: 1.0}):  # of one output, of several
        with suppress(RewardHeadError):
            own_reward(model, [1, 2], fold)
            return True
    return False


def _from_file(model: PreTrainedModel, path: Path) -> nn.Linear:
    """A linear head from a file that holds nothing else."""
    if not path.is_file():
        raise RewardHeadError(f"head is {str(path)!r}, and there is no such file")
    parameter = next(model.parameters())
    head = linear_head(*read_head(path), str(path))
    return head.to(device=parameter.device, dtype=parameter.dtype).eval()


def read_head(path: Path) -> tuple[Tensor, Tensor | None]:
    """The weight, and the bias if there is one, in a file of a head. Raises RewardHeadError."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RewardHeadError(
            checkpoint.damage(path) or f"{path} cannot be read as safetensors: {error}"
        ) from error
    weights = [x for x in tensors.values() if x.dim() == 2]
    biases = [x for x in tensors.values() if x.dim() == 1]
    if len(weights) != 1 or len(biases) > 1:
        raise RewardHeadError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; a head's file has one weight "
            "matrix, and at most one bias"
        )
    return weights[0], biases[0] if biases else None


def linear_head(weight: Tensor, bias: Tensor | None, name: str) -> nn.Linear:
    """A head of these numbers.

    Args:
        weight: [outputs, H], or [H] for one output.
        bias: [outputs], or None.
        name: of what holds them, for the message.

    Raises:
        RewardHeadError: they are not the weight and the bias of one linear layer.
    """
    if weight.dim() == 1:
        weight = weight[None]
    if (
        weight.dim() != 2
        or not weight.numel()
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        shapes = f"weight {list(weight.shape)}, bias {'none' if bias is None else list(bias.shape)}"
        raise RewardHeadError(
            f"the reward head in {name} is not a linear layer: {shapes}; it has a weight of "
            "[outputs, hidden size] and a bias of [outputs], or none"
        )
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _outputs(module: nn.Module, model: PreTrainedModel) -> int:
    """How many numbers the head gives: asked of it, by one hidden state."""
    # Some models project their hidden states before the head, so the head itself is asked first.
    first_linear = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
    size = first_linear.in_features if first_linear else model.config.get_text_config().hidden_size
    parameter = next(module.parameters(), next(model.parameters()))
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 1, size, dtype=dtype, device=parameter.device))
    except Exception as error:
        raise RewardHeadError(
            f"the head ({type(module).__name__}) cannot be applied to a hidden state of size "
            f"{size} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 3:
        raise RewardHeadError(
            f"the head ({type(module).__name__}) does not give one row of numbers per hidden state"
        )
    return out.shape[2]


def fold_labels(model: PreTrainedModel, outputs: int, labels: Labels) -> dict[int, float] | None:
    """The weight of each of a model's outputs in the reward; None for the only one. Raises
    RewardHeadError where there are several and ``labels`` is None, ConfigError."""
    if labels is None:
        if outputs == 1:
            return None
        names = ", ".join(f"{i} ({n})" for i, n in list(_names(model).items())[:8])
        raise RewardHeadError(
            f"the reward model's head has {outputs} outputs; a reward is one number. Say which: "
            "labels=1, or labels={1: 1.0, 0: -1.0} for a weighted sum"
            + (f". Its labels are {names}" if names else "")
        )
    if isinstance(labels, (int, str)):
        labels = {labels: 1.0}
    fold: dict[int, float] = {}
    for label, weight in labels.items():
        index = _index(model, label, outputs)
        fold[index] = fold.get(index, 0.0) + float(weight)
    if not fold:
        raise ConfigError("labels is empty; name at least one output of the reward model")
    return fold


def _index(model: PreTrainedModel, label: Any, outputs: int) -> int:
    if isinstance(label, str):
        by_name = {name: i for i, name in _names(model).items()}
        if label not in by_name:
            raise ConfigError(
                f"labels names {label!r}; the reward model's labels are {', '.join(by_name)}"
            )
        label = by_name[label]
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < outputs:
        raise ConfigError(
            f"labels names {label!r}; the reward model has outputs 0 to {outputs - 1}"
        )
    return label


def _names(model: PreTrainedModel) -> dict[int, str]:
    return {int(i): str(name) for i, name in (model.config.id2label or {}).items()}
