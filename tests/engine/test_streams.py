"""The order of two streams, by a stand-in that notes who waits for whom."""

import pytest
import torch

from args_fast.engine.streams import SideStream


@pytest.fixture
def waits(monkeypatch):
    noted = []

    class Stream:
        def __init__(self, device, priority=0):
            self.device, self.priority = device, priority
            self.name = f"beside ({priority})"

        def wait_stream(self, other):
            noted.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            noted.append(f"{self.name} waits for {event}")

        def __enter__(self):
            noted.append(f"on {self.name}")

        def __exit__(self, *_):
            noted.append(f"off {self.name}")

    main = Stream("cuda:0")
    main.name = "main"
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    return noted


def test_on_one_device_it_forks_and_joins(waits):
    beside = SideStream(torch.device("cuda", 0), [torch.device("cuda", 0)])
    with beside():
        waits.append("reward model")
    waits.append("language model")
    beside.join()
    stream = "beside (-1)"
    assert waits == [
        f"{stream} waits for main",
        f"on {stream}",
        "reward model",
        f"off {stream}",
        "language model",
        f"main waits for {stream}",
    ]


@pytest.mark.parametrize("second", [0, 1])
def test_what_was_launched_from_another_stream_is_waited_for(waits, second):
    SideStream(torch.device("cuda", 0), [torch.device("cuda", second)]).after("the last burst")
    assert waits == ["main waits for the last burst"] * (1 + second)


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cuda:0", "cuda:1")])
def test_where_streams_are_apart_anyway_it_does_nothing(waits, devices):
    lm, reward = map(torch.device, devices)
    beside = SideStream(lm, [reward])
    with beside():
        pass
    beside.join()
    assert waits == []
