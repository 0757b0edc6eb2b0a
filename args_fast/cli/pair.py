"""The pair of models that a command uses, and how it reads a prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from args_fast.cli.console import fail, note, notes, quiet_transformers

if TYPE_CHECKING:
    from args_fast import ArgsDecoder


def find_pair(lm: str | None, rm: str | None) -> dict[str, str]:
    """The folders or hub ids of the models: those given, or the embedded pair."""
    if (lm is None) != (rm is None):
        named, missing = ("--lm", "--rm") if rm is None else ("--rm", "--lm")
        fail(
            f"{named} is given without {missing}; name both models, which have to share one "
            "tokenizer, or neither for the embedded pair"
        )
    from args_fast import tiny_pair

    return {"lm": _find(lm or str(tiny_pair.LM)), "rm": _find(rm or str(tiny_pair.RM))}


def load_pair(
    lm: str | None,
    rm: str | None,
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    max_batch_size: int = 64,
    torch_compile: bool = False,
    rm_device: str | None = None,
) -> tuple["ArgsDecoder", dict[str, str]]:
    """The decoder and the names of its models: those given, or the embedded pair, said so."""
    with notes.status("[dim]loading the models[/]"):
        from safetensors import SafetensorError

        from args_fast import ArgsDecoder, ArgsError

        quiet_transformers()
        names = find_pair(lm, rm)
        try:
            decoder = ArgsDecoder.from_pretrained(
                names["lm"],
                names["rm"],
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                max_batch_size=max_batch_size,
                torch_compile=torch_compile,
                rm_device=rm_device,
            )
        except ArgsError:
            raise
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            fail(f"cannot load the models: {error}")
    if lm is None:
        size = " + ".join(
            f"{model.num_parameters() / 1e6:.1f}"
            for model in (decoder.language_model, decoder.reward_model)
        )
        note(
            f"no --lm/--rm given: using the embedded tiny pair (a demonstration, {size} M "
            "parameters)"
        )
    return decoder, names


def as_prompt(text: str, *, chat: bool) -> "str | list[dict[str, Any]]":
    """What a command decodes: the text as it is, or with --chat the message of a user."""
    from args_fast.prompts import from_user

    return from_user(text) if chat else text


def _find(name: str) -> str:
    """A model's folder or hub id, once its config.json is there. So what is misspelt fails in words
    that say so, and without a network after one try, not one for each file a model may have."""
    from transformers.utils import cached_file

    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            fail(f"{name} holds no config.json; a model's folder is what save_pretrained writes")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        fail(f"there is no folder {name}; give a model's folder, or a hub id such as org/name")
    try:
        cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        fail(f"{name} is not a folder here, and the hub does not give it: {error}")
    return name
