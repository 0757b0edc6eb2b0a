"""What cannot be driven, whatever its attention, and what to pass in its place."""

from pathlib import Path

from torch import nn
from transformers import Pipeline, PretrainedConfig, PreTrainedModel

from args_fast.errors import UnsupportedModelError

LANGUAGE_MODEL = "language model"
QUANTIZED = ("torch.ao.nn.quantized", "torchao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_kind(model: PreTrainedModel, role: str) -> PretrainedConfig:
    """The configuration of the model's text part.

    Raises UnsupportedModelError where the object cannot be such a model, whatever its attention:
    an adapter or a wrapper, an encoder-decoder, a language model without a head over the
    vocabulary.
    """
    name = f"the {role} ({type(model).__name__})"
    if not isinstance(model, PreTrainedModel) or _has_adapter(model):
        raise UnsupportedModelError(
            f"{name} is not a plain transformers PreTrainedModel. {_what_to_pass(model, role)}"
        )
    if any(type(module).__module__.startswith(QUANTIZED) for module in model.modules()):
        raise UnsupportedModelError(
            f"{name} is quantized by torch.ao, which rounds the activations of a pass together: "
            "what it gives a text depends on what else it reads. Pass the model as it was, with "
            "lm_quantization='int8' or rm_quantization='int8' for 8-bit weights."
        )
    try:
        config = model.config.get_text_config()
    except ValueError as error:
        raise UnsupportedModelError(
            f"{name} has more than one text model inside; pass the one that is meant."
        ) from error
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; use a decoder-only model.")
    if role == LANGUAGE_MODEL and model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name} has no head over the vocabulary, so it is not a language model"
            f"{_other_kind(model)}; load it with AutoModelForCausalLM from a checkpoint that was "
            "trained as one."
        )
    return config


def _has_adapter(model: PreTrainedModel) -> bool:
    """Whether transformers has put a peft adapter into the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def _other_kind(model: PreTrainedModel) -> str:
    if any(hasattr(model, name) for name in ("score", "classifier")):
        return " but a classifier (are the language model and the reward model swapped?)"
    return " but a base model" if model.base_model is model else ""


def _what_to_pass(model: object, role: str) -> str:
    """The next step for somebody who has passed something else than a model."""
    if isinstance(model, (str, Path)):
        return "ArgsDecoder.from_pretrained(lm, rm) takes paths and hub ids."
    if isinstance(model, Pipeline):
        return "Pass the pipeline's model: pipeline.model"
    for name in ("_orig_mod", "module"):  # torch.compile; DataParallel and the like
        if isinstance(getattr(model, name, None), PreTrainedModel):
            return f"Pass the model inside it: model.{name}"
    if role != LANGUAGE_MODEL and isinstance(model, (list, tuple, dict)):
        return "For several rewards pass rewards.Mixture([(reward, 0.7), (another, 0.3)])."
    if role != LANGUAGE_MODEL and callable(model) and not isinstance(model, (type, nn.Module)):
        return "For a Python function pass rewards.Function(function)."
    return (
        "Load one with transformers. Merge an adapter into its base first (`model = "
        "model.merge_and_unload()`, from peft), and unwrap a wrapper."
    )
