"""The program ``args-fast``, and ``python -m args_fast``."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run the command line. Ctrl-C ends it quietly, also while it is being imported."""
    interrupts: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, interrupt)
    if sys.stderr is None:  # closed: notes and errors have nowhere to go, results have
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        from args_fast.cli import app

        app(prog_name="args-fast")
    except Exception:
        # A library whose import was interrupted may have made an error of its own of it.
        if not interrupts:
            raise
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
