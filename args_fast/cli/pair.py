"""Which pair of models a command uses, and how it reads a prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from args_fast.cli import rewards
from args_fast.cli.console import fail, note, notes, quiet_transformers
from args_fast.cli.models import Models

if TYPE_CHECKING:
    from args_fast import ArgsDecoder


def find_pair(lm: str | None, rm: str | None) -> dict[str, str]:
    """The folders or hub ids of the models, and several rewards as ``cli.rewards`` writes them:
    those given, or the embedded pair. Functions alone guide the embedded language model."""
    functions = rm is not None and rewards.are_functions(rm)
    if (lm is None) != (rm is None) and not (functions and lm is None):
        given, missing = ("--lm", "--rm") if rm is None else ("--rm", "--lm")
        fail(
            f"{given} is given without {missing}; name both models, which have to share one "
            "tokenizer, or neither for the embedded pair"
        )
    from args_fast import tiny_pair
    from args_fast.models import adapters, checkpoint

    def find(name: str) -> str:  # an adapter is merged when it is loaded
        return name if adapters.is_folder(name) else checkpoint.find(name)

    lm = str(lm or tiny_pair.LM)
    if adapters.is_folder(lm):
        adapters.check_language_model(Path(lm))
    return {"lm": find(lm), "rm": rewards.lasting(str(rm or tiny_pair.RM), find)}


def load_pair(models: Models) -> tuple["ArgsDecoder", dict[str, str]]:
    """The decoder and the names of its models: those given, or the embedded pair, said so."""
    with notes.status("[dim]loading the models[/]"):
        from args_fast import ArgsDecoder
        from args_fast.models.compact import parameter_count

        quiet_transformers()
        names = find_pair(models.lm, models.rm)
        decoder = ArgsDecoder.from_pretrained(names["lm"], names["rm"], **models.options)
    _choose_threads(decoder)
    if models.lm is None and models.rm is not None:
        size = parameter_count(decoder.language_model) / 1e6
        note(f"no --lm given: using the embedded one (a demonstration, {size:.1f} M parameters)")
    elif models.lm is None:
        sizes = " + ".join(
            f"{parameter_count(model) / 1e6:.1f}"
            for model in (decoder.language_model, decoder.reward_model)
        )
        note(
            f"no --lm/--rm given: using the embedded tiny pair (a demonstration, {sizes} M "
            "parameters)"
        )
    return decoder, names


def _choose_threads(decoder: "ArgsDecoder") -> None:
    """As many threads as suit the models, unless OMP_NUM_THREADS says how many."""
    import torch

    from args_fast.machine import threads_for
    from args_fast.models.compact import parameter_count

    threads = threads_for(parameter_count(decoder.language_model))
    if threads is not None and decoder.device.type == "cpu":
        torch.set_num_threads(threads)


def as_prompt(text: str, *, chat: bool) -> "str | list[dict[str, Any]]":
    """What a command decodes: the text as it is, or with --chat the message of a user."""
    from args_fast.prompts import from_user

    return from_user(text) if chat else text
