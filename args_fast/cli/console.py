"""What every subcommand does alike: results to stdout, words to stderr, errors in one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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
    """Expected errors end the command with one line and exit code 2; Ctrl-C with 130, quietly.
    Warnings are notes of one line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note_warning
            yield
    except BrokenPipeError:
        raise  # the reader of stdout has gone (`| head`): typer ends without a word
    except BaseException as error:
        if _is_interrupt(error):
            notes.print()
            raise typer.Exit(130) from None
        if isinstance(error, (ArgsError, OSError)):
            fail(str(error))
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not imported for this
            raise
        sentence = str(error).partition(". ")[0]
        fail(f"{sentence}. Use smaller models, --dtype bfloat16, fewer --max-new-tokens or --k.")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what ended the command. A library that is being imported may turn it into
    an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _note_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note("warning: " + " ".join(str(message).split()))


def needs_stdout() -> None:
    """End the command where standard output is closed and its result would be lost."""
    if sys.stdout is None:
        fail("standard output is closed, and the result goes there; leave it open, or redirect it")


def quiet_transformers() -> None:
    """Progress bars and notices of the libraries are not ours to show."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def read_prompt(prompt: str | None, example: str) -> str:
    """The argument, or standard input (less its final line break) where it is absent or "-"."""
    if prompt is None or prompt == "-":
        if sys.stdin is None or sys.stdin.isatty():
            closed = "standard input is closed and " * (sys.stdin is None)
            fail(f"{closed}there is no prompt; give one, or pipe one in. For example: {example}")
        try:
            prompt = sys.stdin.read().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            fail(f"standard input is not {error.encoding} text: {error.reason}")
        if not prompt:
            fail(f"standard input is empty; pipe a prompt in, or give one: {example}")
    if not prompt:
        fail(f"the prompt is empty; give one, or pipe one in. For example: {example}")
    if not prompt.isprintable():  # a byte that is not text comes in as half of a surrogate pair
        try:
            prompt.encode()
        except UnicodeEncodeError:
            fail("the prompt is not UTF-8 text")
    return prompt
