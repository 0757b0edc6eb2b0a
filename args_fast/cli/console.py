"""What every subcommand does alike: results to stdout, words to stderr, errors in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from args_fast.errors import ArgsError

notes = Console(stderr=True, highlight=False)
results = Console(highlight=False)


def plain(text: str, style: str = "") -> Text:
    """Text that rich shows as it is, square brackets included."""
    return Text(text, style)


def note(text: str) -> None:
    """A quiet line to stderr, left for the terminal to wrap."""
    notes.print(plain(text, "dim"), soft_wrap=True)


def fail(message: str) -> NoReturn:
    """One line to stderr, whatever the message, and exit code 2."""
    notes.print("[bold red]error:[/]", plain(" ".join(message.split())), soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Expected errors end the command with one line and exit code 2; Ctrl-C with 130, quietly."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of stdout has gone (`| head`): typer ends without a word
    except (ArgsError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        notes.print()
        raise typer.Exit(130) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported for this
            raise
        first = str(error).partition(". ")[0]
        fail(f"{first}. Use smaller models, --dtype bfloat16, fewer --max-new-tokens or --k.")


def quiet_transformers() -> None:
    """Progress bars and notices of the libraries are not ours to show."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def read_prompt(prompt: str | None, example: str) -> str:
    """The argument, or standard input (less its final newline) where it is absent or "-"."""
    if prompt is None or prompt == "-":
        if sys.stdin.isatty():
            fail(f"there is no prompt; give one, or pipe one in. For example: {example}")
        try:
            prompt = sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            fail(f"standard input is not {error.encoding} text: {error.reason}")
        if not prompt:
            fail(f"standard input is empty; pipe a prompt in, or give one: {example}")
    if not prompt.isprintable():  # a byte that is no text comes in as half of a surrogate pair
        try:
            prompt.encode()
        except UnicodeEncodeError:
            fail("the prompt is not UTF-8 text")
    return prompt
