"""``args-fast chat``: a conversation in the terminal, and what each token was chosen from."""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from args_fast.cli import options
from args_fast.cli.console import errors_in_a_line, needs_stdout, note
from args_fast.cli.models import Models, with_models
from args_fast.cli.pair import load_pair

if TYPE_CHECKING:
    from args_fast import ArgsDecoder, DecodingConfig, Token

EXAMPLES = """
[bold]Examples[/]

args-fast chat  [dim]# the embedded pair; /help lists the commands, /candidates shows the choices[/]

args-fast chat --lm org/lm --rm helpful=org/rm --reward-function safe=rules:safety --w 2

[dim]# questions from a file, one a line; an answer a line[/]

args-fast chat --json < questions.txt | jq -r .text
"""
HELP = """\
/candidates [STEP]  what each token of the last answer (or one) was chosen from: log p, r and s
/set NAME VALUE     an option from now on: w, k, temperature, max_new_tokens, seed
/reset              forget the conversation
/help               this
/quit               leave; so do Ctrl-D and the end of the input"""
SETTABLE = ("w", "k", "temperature", "max_new_tokens", "seed")


@with_models
def chat(
    system: Annotated[
        str | None,
        typer.Option(
            help="A system message before the conversation.",
            metavar="TEXT",
            rich_help_panel=options.DECODING,
        ),
    ] = None,
    k: options.K = 10,
    w: options.W = 1.5,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    stop: options.Stop = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line for each answer, when it is whole."),
    ] = False,
    *,
    models: Models,
) -> None:
    """Talk with a language model guided by a reward model.

    Answers stream to standard output. A line that begins with / is a command; /help lists them.
    """
    with errors_in_a_line():
        needs_stdout()
        from args_fast import DecodingConfig

        config = DecodingConfig(
            k=k,
            w=w,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop=stop or (),
            return_candidates=True,
        )
        decoder, _ = load_pair(models)
        talk = Talk(decoder, config, system, as_json=as_json)
        if sys.stdin.isatty():
            _import_readline()
            note("/help lists the commands; Ctrl-D leaves")
        while (line := _read()) is not None:
            if line.strip() and not talk.take(line.strip()):
                return


class Talk:
    """A conversation so far, and the steps of its last answer.

    Args:
        decoder: answers.
        config: how; with candidates.
        system: a message before all others, if any.
        as_json: print whole answers as JSON.
    """

    def __init__(
        self,
        decoder: "ArgsDecoder",
        config: "DecodingConfig",
        system: str | None,
        *,
        as_json: bool,
    ) -> None:
        self._decoder = decoder
        self._config = config
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._as_json = as_json
        self._messages: list[dict[str, Any]] = list(self._opening)
        self._steps: list[Token] = []

    def take(self, line: str) -> bool:
        """Answer a line, or obey it; False where it ends the conversation. An error is a note, and
        the conversation stays as it was."""
        from args_fast.errors import ArgsError

        before = list(self._messages)
        try:
            if not line.startswith("/"):
                self._answer(line)
                return True
            command, _, argument = line.partition(" ")
            return self._obey(command, argument.strip())
        except ArgsError as error:
            self._messages = before
            note(f"error: {error}")
            return True

    def _answer(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        self._steps = []
        if self._as_json:
            result = self._decoder.chat(self._messages, self._config)
            print(json.dumps(result.as_json(), allow_nan=False, ensure_ascii=False), flush=True)
            self._messages.append({"role": "assistant", "content": result.text})
            return
        try:
            for token in self._decoder.stream(self._messages, self._config):
                self._steps.append(token)
                sys.stdout.write(token.text or "")
                sys.stdout.flush()
        except KeyboardInterrupt:  # what was said until then is the answer
            note(" (stopped)")
        print(flush=True)
        text = "".join(token.text or "" for token in self._steps)
        self._messages.append({"role": "assistant", "content": text})

    def _obey(self, command: str, argument: str) -> bool:
        if command in ("/quit", "/exit"):
            return False
        if command in ("/candidates", "/c"):
            self._show(argument)
        elif command == "/reset":
            self._messages, self._steps = list(self._opening), []
            note("the conversation is forgotten")
        elif command == "/set":
            self._set(*argument.partition(" ")[::2])
        elif command == "/help":
            print(HELP, flush=True)
        else:
            note(f"{command} is not a command; /help lists them")
        return True

    def _set(self, name: str, value: str) -> None:
        if name not in SETTABLE:
            note(f"/set takes one of {', '.join(SETTABLE)}, and a value: /set w 2")
            return
        try:
            number = json.loads(value)
        except ValueError:
            number = value
        self._config = replace(self._config, **{name: number})
        note(f"{name} is {getattr(self._config, name)}")

    def _show(self, argument: str) -> None:
        """The candidates of every step of the last answer, or of one (counted from 1)."""
        steps = list(enumerate(self._steps, 1))
        if not steps:
            note("there is no answer to show yet; with --json its steps are in the answer itself")
            return
        if argument:
            steps = [(i, token) for i, token in steps if str(i) == argument]
        if not steps:
            note(f"there is no step {argument}; the last answer has {len(self._steps)}")
        for i, token in steps:
            print(f"step {i}   {'candidate':<24}{'log p':>9}{'r':>9}{'s':>9}")
            for candidate in token.candidates or ():
                mark = ">" if candidate.token_id == token.token_id else " "
                numbers = (candidate.logprob, candidate.reward, candidate.score)
                shown = "".join(f"{x:>9.3f}" if x == x else f"{'-':>9}" for x in numbers)
                print(f"{mark:>8} {self._text(candidate.token_id):<24}{shown}", flush=True)

    def _text(self, token: int) -> str:
        tokenizer = self._decoder.tokenizer
        return repr("" if tokenizer is None else tokenizer.decode([token]))[:23]


def _import_readline() -> None:
    """Editing and history of the line, where Python was built with it."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401


def _read() -> str | None:
    """The next line; None at the end of the input. Ctrl-C at an empty prompt leaves as Ctrl-D."""
    try:
        if sys.stdin.isatty():
            return input("> ")
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None
