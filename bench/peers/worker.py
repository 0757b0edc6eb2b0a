"""A peer in the Python of its own environment, which decodes when it is asked to.

execnet starts that Python, in which nothing of ours is installed, and carries what is asked and
answered. The clock is the peer's own, so the pipe is in no figure.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import execnet

# Prompts of one length, new tokens -> the new ids of each prompt, which are decoded together.
Decode = Callable[[list[list[int]], int], list[list[int]]]
FOLDER = str(Path(__file__).resolve().parent.parent)  # of bench/, where the modules are
SECONDS_TO_END = 10.0  # then a process is killed


def serve(channel: "execnet.Channel", folder: str, module: str, log: str, arguments: dict) -> None:
    """Load a peer and decode with it; runs in its process, to which execnet sends this function."""
    import importlib
    import os
    import sys
    import time

    with open(log, "ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ.pop("OMP_WAIT_POLICY", None)  # our Makefile's, which would slow other engines
    os.environ["OMP_NUM_THREADS"] = str(arguments["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.append(folder)  # the last one, so that no module of bench/ hides a peer's
    methods = importlib.import_module(module).load(**arguments)
    channel.send(list(methods))
    for name, prompts, new_tokens in channel:
        try:
            began = time.perf_counter()
            token_ids = methods[name](prompts, new_tokens)
            channel.send((time.perf_counter() - began, token_ids))
        except Exception as error:
            channel.send(f"{type(error).__name__}: {error}"[:300])


class WorkerError(RuntimeError):
    """A peer could not be loaded, or a decode of it failed; the message is the peer's own."""


class Worker:
    """A peer's process, seen from the program that compares.

    Args:
        python: The interpreter of the peer's environment.
        log: The file that gets what the peer prints.
        module: The module that has its ``load``.
        arguments: Of ``load``.
    """

    def __init__(self, python: Path, log: Path, module: str, arguments: dict[str, Any]) -> None:
        self.methods: list[str] = []
        self._log = log
        self._group = execnet.Group()
        gateway = self._group.makegateway(f"popen//python={quote(str(python))}")
        self._channel = gateway.remote_exec(
            serve, folder=FOLDER, module=module, log=str(log), arguments=arguments
        )

    def wait_until_loaded(self) -> None:
        """Raises WorkerError where the peer cannot be loaded."""
        self.methods = self._answer()

    def decode(
        self, method: str, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[float, list[list[int]]]:
        """The seconds of a decode, prompts included, and the new ids of each prompt."""
        with suppress(OSError):  # the process ended, which the answer says
            self._channel.send((method, list(prompts), new_tokens))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._channel.receive()
        except EOFError:
            answer = "the process ended"
        except execnet.RemoteError as error:
            answer = error.formatted.strip().rpartition("\n")[2]
        if isinstance(answer, str):
            raise WorkerError(f"{answer}; see {self._log}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._group.terminate(SECONDS_TO_END)
