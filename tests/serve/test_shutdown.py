"""Ends: of a server that is asked to stop, and of one whose engine has stopped."""

import json
import signal
import threading
import time

import httpx
import pytest
from served import NAME, in_a_process, on_loopback, options

from args_fast import ArgsDecoder
from args_fast.serve.app import create_app
from args_fast.serve.engine_view import EngineView
from args_fast.tiny_pair import LM, RM

LONG = {"prompt": "Tell me of zebras", "ignore_eos": True, "stream": True}


def test_sigterm_lets_requests_finish(tmp_path):
    headers = {"Authorization": "Bearer from-environment"}
    variables = {"ARGS_FAST_API_KEYS": "from-environment", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with in_a_process(log, "--device", "cpu", "--max-model-len", "128", **variables) as served:
        server, url = served
        assert httpx.get(url + "/v1/models").status_code == 401
        with httpx.stream(
            "POST", url + "/v1/completions", json=LONG, headers=headers, timeout=60
        ) as response:
            lines = response.iter_lines()
            assert "text" in next(lines)
            server.send_signal(signal.SIGTERM)
            rest = list(lines)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")
        assert server.wait(20) in (0, -signal.SIGTERM)
    said = log.read_text()
    assert rest[-2] == "data: [DONE]"
    assert "embedded tiny pair" in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (line,) = [each for each in lines if "completion_tokens" in each]
    assert line["completion_tokens"] > 100
    assert "zebra" not in said
    assert "from-environment" not in said


def test_time_to_finish_has_an_end():
    engine = EngineView(ArgsDecoder.from_pretrained(LM, RM, device="cpu"))
    hook = engine._decoder.language_model.lm_head.register_forward_pre_hook(
        lambda *_: time.sleep(0.01)  # so that it cannot finish in time
    )
    server = on_loopback(engine)
    url, _ = server.__enter__()
    with httpx.stream("POST", url + "/v1/completions", json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        ending = threading.Thread(target=server.__exit__, args=(None, None, None))
        ending.start()
        got = [line for line in lines if line]
    ending.join(30)
    hook.remove()
    last = json.loads(got[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_stopped"


def test_engine_that_stops_is_said_everywhere():
    import asyncio

    async def work():
        engine = EngineView(ArgsDecoder.from_pretrained(LM, RM, device="cpu"))
        app = create_app(engine, options())
        transport = httpx.ASGITransport(app)
        body = {"model": NAME, "prompt": "a", "ignore_eos": True}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/health")).status_code == 200
            under_way = asyncio.ensure_future(client.post("/v1/completions", json=body))
            while not engine.cache.pages_in_use:
                await asyncio.sleep(0.005)
            await engine._engine.close()  # the thread ends, and no one told the server
            responses = [await under_way, await client.post("/v1/completions", json=body)]
            responses.append(await client.get("/health"))
        await app.state.service.close()
        return responses

    before, after, health = asyncio.run(asyncio.wait_for(work(), 60))
    for response in (before, after):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_stopped"
        assert response.headers["retry-after"]
    assert health.status_code == 503
    assert health.json() == {"status": "the engine has stopped"}
