"""The application on Ray Serve, in two replicas."""

import os
import sys
import threading

import httpx
import pytest
from served import events, options

pytest.importorskip("ray.serve", reason="pip install 'args-fast[ray]'")

from args_fast import DecodingConfig
from args_fast.serve import ray_app
from args_fast.serve.server import listen
from args_fast.tiny_pair import LM, RM


@pytest.fixture(scope="module")
def url():
    import ray
    from ray import serve

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # what is importable here is so in actors
    # 15 by default: on a busy machine they would starve.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    assert ray_app.start("cpu") == 0
    pair = ray_app.ServedPair(str(LM), str(RM), {"device": "cpu", "max_batch_size": 4})
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    scale = ray_app.Scale(2, 2, 0.5, 0)
    serve.run(ray_app.deployment(pair, options(api_keys=("k",)), scale), name="args-fast")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def post(url, body):
    headers = {"Authorization": "Bearer k"}
    return httpx.post(url + "/v1/completions", json=body, headers=headers, timeout=60)


def test_answers_are_those_of_one_process(url, alone):
    config = DecodingConfig(max_new_tokens=6, seed=1, temperature=0.8)
    (expected,) = alone.generate("How do", config)
    body = {"prompt": "How do", "max_tokens": 6, "seed": 1, "temperature": 0.8}
    answer = post(url, body)
    assert answer.json()["choices"][0]["args"]["token_ids"] == expected.token_ids
    stream = events(post(url, body | {"stream": True}).text)
    assert "".join(c["text"] for event in stream for c in event["choices"]) == expected.text


def test_failures_are_the_applications(url):
    assert httpx.get(url + "/v1/models").status_code == 401
    assert post(url, {"prompt": "a", "best_of": 3}).status_code == 400


def test_both_replicas_work(url):
    from ray import serve

    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(post(url, {"prompt": "a", "max_tokens": 50}))
        )
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 12
    (deployment,) = serve.status().applications["args-fast"].deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
