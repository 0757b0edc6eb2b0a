"""One server on loopback with the embedded pair, for all tests of this folder."""

from pathlib import Path

import httpx
import pytest
from served import on_loopback

from args_fast import ArgsDecoder
from args_fast.serve.engine_view import EngineView
from args_fast.tiny_pair import LM, RM

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """The tests' texts are not conversations, and are not meant to be."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.filterwarnings("ignore:the prompt is text"))


@pytest.fixture(scope="session")
def alone():
    """The pair outside any server: what a request's tokens have to be."""
    return ArgsDecoder.from_pretrained(LM, RM, device="cpu")


@pytest.fixture(scope="session")
def served():
    """The address of the server, and its service."""
    engine = EngineView(ArgsDecoder.from_pretrained(LM, RM, device="cpu", max_batch_size=8))
    with on_loopback(engine) as server:
        yield server


@pytest.fixture(scope="session")
def service(served):
    return served[1]


@pytest.fixture(scope="session")
def client(served):
    with httpx.Client(base_url=served[0], timeout=60) as client:
        yield client
