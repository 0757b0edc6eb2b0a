"""Judges that did not guide: other reward models, and functions of one's own.

The paper was criticised for guiding and judging with one reward model; every table can show any
number of others next to it.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from args_fast.errors import EvaluationError

Function = Callable[[list[str], list[str]], list[float]]
FUNCTION = re.compile(r"(?P<home>.+):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Judge:
    """A judge and where it comes from.

    Attributes:
        name: what tables call it.
        source: a reward model (folder or hub id), or a function of prompts and responses as
            "FILE.py:NAME" or "MODULE:NAME".
    """

    name: str
    source: str

    @property
    def is_function(self) -> bool:
        return FUNCTION.fullmatch(self.source) is not None

    def function(self) -> Function:
        """The function that a source names: (prompts, responses) -> one number for each.

        Raises:
            EvaluationError: it cannot be imported.
        """
        match = FUNCTION.fullmatch(self.source)
        assert match is not None
        home, name = match["home"], match["name"]
        try:
            if home.endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(home).stem, home)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                sys.modules.setdefault(spec.name, module)  # dataclasses look their module up
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(home)
            return getattr(module, name)
        except (ImportError, OSError, AttributeError, SyntaxError) as error:
            raise EvaluationError(
                f"the judge {self.source} cannot be imported: {error}; name FILE.py:FUNCTION or "
                "MODULE:FUNCTION, a function of prompts and responses"
            ) from error


def parse(written: str) -> Judge:
    """A judge from "SOURCE" or "NAME=SOURCE"."""
    name, equals, source = written.partition("=")
    if not equals:
        name, source = "", written
    if not source:
        raise EvaluationError(f"the judge {written!r} names no reward model and no function")
    match = FUNCTION.fullmatch(source)
    return Judge(name or (match["name"] if match else Path(source).name), source)
