"""What a model's generation_config asks of logits, through transformers' own processors.

The paper's algorithm has no such rules. By default they are named in one warning and ignored;
"model" obeys them, so that log p is the log-softmax of the processed logits and k = 1 is
``generate(do_sample=False)``. temperature, top_k, top_p and the like are never taken: they are for
sampling, and ARGS has its own.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from args_fast.errors import ConfigError

Choice = Literal["model"] | LogitsProcessorList | None

# It makes a log-softmax of logits, which is made of them anyway.
WITHOUT_EFFECT = {"renormalize_logits"}
# It needs a second pass of the language model without the prompt, at every step.
NEEDS_PASS = "guidance_scale"


def rules(model: PreTrainedModel) -> list[str]:
    """Names of the settings in the model's generation_config that change its logits."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return []
    names = []
    for name, value in config.to_dict().items():
        if value is None or name in WITHOUT_EFFECT or not hasattr(GenerationConfig(), name):
            continue
        try:
            alone = GenerationConfig(**{name: value})
            made = _processors(model, alone, prompt=[0], max_new_tokens=1, end_tokens={0})
            has_effect = bool(made)
        except Exception:  # a value that transformers refuses where it is obeyed
            has_effect = True
        if has_effect:
            names.append(name)
    return names


def check(model: PreTrainedModel, choice: Any) -> Choice:
    """The choice of a decoder, once it is known to be one. Warns of rules that it ignores.

    Args:
        model: the language model.
        choice: None, "model", a LogitsProcessorList, or another list of processors.

    Raises:
        ConfigError: it is something else, or the model's rules cannot be obeyed.
    """
    if choice is None:
        warn_of_ignored(model)
        return None
    if choice == "model":
        if NEEDS_PASS in rules(model):
            raise ConfigError(
                f"the model's generation_config sets {NEEDS_PASS}, which needs a second pass of "
                "the language model and is not supported; set it to None"
            )
        return "model"
    if isinstance(choice, (list, tuple)) and all(map(callable, choice)):
        return LogitsProcessorList(choice)
    raise ConfigError(
        f"logits_processor is {choice!r}; it must be None (the paper's algorithm), 'model' (what "
        "the model's generation_config asks for), or a LogitsProcessorList"
    )


def warn_of_ignored(model: PreTrainedModel) -> None:
    """Name in one warning the rules that are ignored, where there are some."""
    ignored = rules(model)
    if ignored:
        warnings.warn(
            f"the language model's generation_config sets {', '.join(ignored)}, and ARGS ignores "
            'that; logits_processor="model" obeys it',
            UserWarning,
            stacklevel=3,
        )
    config = getattr(model, "generation_config", None)
    if stops := getattr(config, "stop_strings", None):
        warnings.warn(
            f"the language model's generation_config sets stop_strings = {stops!r}, and ARGS "
            "ignores that; DecodingConfig(stop=...) obeys it",
            UserWarning,
            stacklevel=3,
        )


def for_request(
    model: PreTrainedModel,
    choice: Choice,
    prompt: list[int],
    max_new_tokens: int,
    end_tokens: frozenset[int],
) -> Callable[[list[int], Tensor], Tensor] | None:
    """What processes the logits of one request: (the prompt's ids and the tokens so far, logits [V]
    of any type) -> logits [V] f32; None where they stay as they are.

    Args:
        model: the language model.
        choice: as ``check`` returned it.
        prompt: the prompt's ids, whose length some rules count from.
        max_new_tokens: upper bound on the new tokens.
        end_tokens: ids that end the request, which some rules forbid or force.
    """
    if choice == "model":
        processors = _processors(
            model,
            copy.deepcopy(model.generation_config),
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            end_tokens=end_tokens,
        )
    else:
        processors = choice or LogitsProcessorList()
    return partial(_process, processors) if processors else None


def _process(processors: LogitsProcessorList, ids: list[int], logits: Tensor) -> Tensor:
    context: Any = torch.tensor([ids], device=logits.device)
    scores: Any = logits[None].to(torch.float32, copy=True)
    return processors(context, scores)[0]


def _processors(
    model: PreTrainedModel,
    config: GenerationConfig,
    *,
    prompt: list[int],
    max_new_tokens: int,
    end_tokens: frozenset[int] | set[int],
) -> LogitsProcessorList:
    """Those that ``generate`` would make, without those of sampling. Changes the config."""
    config.do_sample = False
    config.num_beams = 1
    config.renormalize_logits = False
    config.max_length = len(prompt) + max_new_tokens
    config.eos_token_id = sorted(end_tokens) or None
    if not end_tokens:
        config.exponential_decay_length_penalty = None  # it is of the end tokens' logits
    generates: Any = model
    try:
        generates._prepare_special_tokens(config, device=model.device)
        return generates._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([prompt], device=model.device),
            device=model.device,
            model_kwargs={},
        )
    except Exception as error:  # each processor checks its own value, in its own way
        raise ConfigError(
            f"the model's generation_config cannot be obeyed: {error}. Correct it, or leave out "
            'logits_processor="model"'
        ) from error
