"""The command line runs in this process, on the embedded pair: nothing is downloaded."""

import json

import pytest
from typer.testing import CliRunner

from args_fast import ArgsDecoder
from args_fast.cli import app
from args_fast.tiny_pair import LM, RM


@pytest.fixture
def cli():
    """Run a command line: arguments, and what is piped in."""

    def run(*arguments, piped=None):
        return CliRunner().invoke(app, list(map(str, arguments)), input=piped)

    return run


@pytest.fixture
def cli_json(cli):
    """The one JSON object that a command prints."""

    def run(*arguments, piped=None):
        result = cli(*arguments, "--json", piped=piped)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def pair():
    return ArgsDecoder.from_pretrained(LM, RM, device="cpu")
