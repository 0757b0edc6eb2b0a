"""What transformers loads, and what it says of it, in errors of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from args_fast.errors import ArgsError, ConfigError, LoadError
from args_fast.models import checkpoint


@dataclass(frozen=True)
class Report:
    """What transformers says of the weights: those that the model has and the files have not, and
    the other way round."""

    missing: list[str]
    unexpected: list[str]


def load(
    kind: Any, name: str, role: str, dtype: Any, options: dict[str, Any]
) -> tuple[PreTrainedModel, Report]:
    model, info = translated(
        lambda: kind.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        ),
        name,
        role,
    )
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # Torch's attention leaves softcaps out, and not every transformers knows that.
        model.set_attn_implementation("eager")
    return model, Report(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))


def load_config(name: str, options: dict[str, Any]) -> PretrainedConfig:
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    return translated(lambda: AutoConfig.from_pretrained(name, **trusted), name, "model")


def translated(load: Callable[[], Any], name: str, role: str) -> Any:
    """What transformers and its readers raise, and they may raise anything, as errors of ours."""
    try:
        return load()
    except (ArgsError, torch.OutOfMemoryError, MemoryError):
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        said = checkpoint.words(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"the {role} of {name} needs Python code that comes with it; pass "
                "trust_remote_code=True (--trust-remote-code) if you trust its author"
            ) from error
        cause = checkpoint.damages(name) or f"{type(error).__name__}: {said}"
        raise LoadError(f"the {role} of {name} cannot be loaded: {cause}") from error


def is_fault(error: BaseException) -> bool:
    """Whether an error is one of the code that ran, and not an order to stop. The tokenizers
    package is written in Rust, and its panics are not Exceptions."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def check_unused(model: PreTrainedModel, unexpected: list[str], name: str) -> None:
    """Weights of parts that the model has: without them it is another model. Whole other parts (a
    vision tower, a second head) are not needed."""
    unused = [key for key in unexpected if _belongs(model, key)]
    if unused:
        raise LoadError(
            f"{name} has {listed(unused)}, which {type(model).__name__} would drop: it was saved "
            "by another class, or its config.json has changed since. Use the config.json that it "
            "was saved with"
        )


def _belongs(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight is one more of a module with weights, or of one more layer."""
    text = model.config.get_text_config()
    extra = getattr(text, "num_nextn_predict_layers", 0) or 0  # drafts, which are not decoded with
    module: Any = model
    for part in key.split("."):
        if isinstance(module, nn.ModuleList) and part.isdigit() and int(part) >= len(module):
            return int(part) >= len(module) + extra
        if module is not model and any(True for _ in module.parameters(recurse=False)):
            return True
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            return False
    return False


def finish(model: PreTrainedModel, device: torch.device, name: str) -> PreTrainedModel:
    if broken := list(islice(checkpoint.broken_weights(model.named_parameters()), 3)):
        raise LoadError(
            f"{name} has NaN or infinity in {', '.join(broken)}: the checkpoint is damaged, or was "
            "saved after a training run that diverged. Get it again, or an earlier one"
        )
    return model.to(device).eval()  # type: ignore[arg-type]


def listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"the weights {', '.join(keys[:5])}{more}"
