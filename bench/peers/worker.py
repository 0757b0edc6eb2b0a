"""A process that decodes when it is asked to, and both ends of its pipe.

One line of JSON asks for a decode, {"method", "prompts" (ids of each), "new_tokens"}, and one
answers it, {"seconds", "token_ids" (of each)} or {"error"}. The first line, unasked, names the
methods. The clock is the worker's own, so the pipe is in no figure. Only the standard library is
used here: a worker runs in an environment that has a peer and nothing of ours.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Prompts of one length, new tokens -> the new ids of each prompt, which are decoded together.
Decode = Callable[[list[list[int]], int], list[list[int]]]
# The folder of bench/ comes last in the path, so that no module of it hides a peer's.
START = "import sys; sys.path.append(sys.argv.pop(1)); from peers.worker import main; main()"


def main() -> None:
    """Run as a worker: the name of a module, and the arguments of its ``load``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints goes to the log
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        methods: dict[str, Decode] = importlib.import_module(name).load(**arguments)
    except Exception as error:
        print(json.dumps({"error": _words(error)}), file=answers, flush=True)
        raise
    print(json.dumps({"methods": list(methods)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            began = time.perf_counter()
            token_ids = methods[request["method"]](request["prompts"], request["new_tokens"])
            answer: dict[str, Any] = {"seconds": time.perf_counter() - began}
            answer["token_ids"] = [list(map(int, own)) for own in token_ids]
        except Exception as error:
            answer = {"error": _words(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class WorkerError(RuntimeError):
    """A peer could not be loaded, or a decode of it failed; the message is the peer's own."""


class Worker:
    """A peer's process, seen from the program that compares.

    Args:
        python: The interpreter of the peer's environment.
        module: The module that has its ``load``.
        log: The file that gets what the peer prints.
        variables: Environment variables of the process, on top of the present ones.
        arguments: Of ``load``.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        log: Path,
        variables: dict[str, str],
        arguments: dict[str, Any],
    ) -> None:
        command = [str(python), "-c", START, str(Path(__file__).resolve().parent.parent)]
        # Our Makefile makes threads wait passively, which would slow the engines of others.
        inherited = {name: v for name, v in os.environ.items() if name != "OMP_WAIT_POLICY"}
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [*command, module, json.dumps(arguments)],
                env={**inherited, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._log = log
        self.methods: list[str] = []

    def wait_until_loaded(self) -> None:
        """Raises WorkerError where the peer cannot be loaded."""
        self.methods = self._answer()["methods"]

    def decode(
        self, method: str, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[float, list[list[int]]]:
        """The seconds of a decode, prompts included, and the new ids of each prompt."""
        request = {"method": method, "prompts": list(prompts), "new_tokens": new_tokens}
        try:
            print(json.dumps(request), file=self._requests, flush=True)
        except BrokenPipeError as error:
            raise WorkerError(f"the process ended; see {self._log}") from error
        answer = self._answer()
        return answer["seconds"], answer["token_ids"]

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise WorkerError(f"the process ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{answer['error']} (see {self._log})")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.close()  # which ends its loop
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
