"""Servers for tests: on loopback with the tiny pair, or in the test's own loop on a fake engine."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import httpx
from fake_engine import FakeEngine

from args_fast.serve.app import create_app
from args_fast.serve.options import ServerOptions
from args_fast.serve.server import DrainingServer, address, listen

NAME = "tiny"


def options(**given):
    return ServerOptions(**{"model_names": (NAME,), **given})


@contextlib.contextmanager
def on_loopback(engine, **given):
    """The address of a server that runs in a thread, and its service."""
    with listen("127.0.0.1", 0) as listening:
        app = create_app(engine, options(**given))
        server = DrainingServer(app, 0.5, engine.close)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield address(listening), app.state.service
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def in_a_process(log, *arguments, **variables):
    """``args-fast serve`` as a process, and its address, which answers; ``log`` has its words."""
    command = [sys.executable, "-m", "args_fast", "serve", "--port", "0", *map(str, arguments)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stderr=stderr, env=os.environ | variables) as process,
    ):
        try:
            while not (url := re.search(r"a page to try it: (http://\S+)/", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            # The address is bound before it is listened at.
            httpx.Client(transport=httpx.HTTPTransport(retries=5)).get(url[1] + "/health")
            yield process, url[1]
        finally:
            process.kill()


def ask(engine, *requests, **given):
    """The responses of an app on a fake engine to (method, path, keyword arguments of httpx)."""

    async def work():
        app = create_app(engine, options(**given))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            responses = [await client.request(m, path, **more) for m, path, more in requests]
        app.state.service.prompts.close()
        return responses

    return asyncio.run(asyncio.wait_for(work(), 30))


def complete(body, engine=None, path="/v1/completions", **given):
    """The response of a fake engine's app to one body."""
    (response,) = ask(engine or FakeEngine(), ("POST", path, {"json": body}), **given)
    return response


def chat(body, engine=None, **given):
    """As ``complete``, for a conversation."""
    messages = [{"role": "user", "content": "Hello"}]
    return complete({"messages": messages, **body}, engine, "/v1/chat/completions", **given)


def events(text):
    """The JSON of a stream's events; the last must be [DONE] unless it is an error."""
    *lines, end = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
    if end == "[DONE]":
        return [json.loads(line) for line in lines]
    assert "error" in json.loads(end)
    return [json.loads(line) for line in [*lines, end]]
