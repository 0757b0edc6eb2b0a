"""Prometheus reads what happened, and the dashboard asks for nothing that is not there."""

import json
import re
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from served import ask

DASHBOARD = Path(__file__).parents[2] / "examples/serve/grafana-dashboard.json"
CONTRACT = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    *("prompt_tokens_total", "generation_tokens_total", "reward_rows_total"),
    *("draft_tokens_total", "accepted_tokens_total"),
    *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"),
    "e2e_request_latency_seconds_bucket",
}


def scrape(engine, *bodies):
    """Samples by name and labels after some requests."""
    requests = [("POST", "/v1/completions", {"json": body}) for body in bodies]
    *_, page = ask(engine, *requests, ("GET", "/metrics", {}))
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    return [
        sample for family in text_string_to_metric_families(page.text) for sample in family.samples
    ]


def value(samples, name, **labels):
    (found,) = [
        s.value
        for s in samples
        if s.name == "args_fast:" + name and labels.items() <= s.labels.items()
    ]
    return found


def test_names_are_the_contracts():
    names = {sample.name.removeprefix("args_fast:") for sample in scrape(FakeEngine())}
    assert names >= CONTRACT


def test_requests_are_counted():
    samples = scrape(
        FakeEngine("one two three"),
        {"prompt": [5, 6], "max_tokens": 3, "args": {"k": 4}, "n": 2, "temperature": 1.0},
        {"prompt": [5], "max_tokens": 2, "args": {"k": 1}, "stream": True},
        {"prompt": [5], "model": "no"},
    )
    model = {"model_name": "tiny"}
    assert value(samples, "prompt_tokens_total", **model) == 3
    assert value(samples, "generation_tokens_total", **model) == 8
    assert value(samples, "reward_rows_total", **model) == 2 * 3 * 4
    assert value(samples, "time_to_first_token_seconds_count", **model) == 3
    assert value(samples, "inter_token_latency_seconds_count", **model) == 8 - 3
    assert value(samples, "e2e_request_latency_seconds_count", **model) == 3
    assert value(samples, "request_success_total", finished_reason="length", **model) == 3
    for status, count in (("200", 2), ("404", 1)):
        labels = {"route": "/v1/completions", "status": status}
        assert value(samples, "http_responses_total", **labels) == count


def test_engine_is_read_at_the_scrape():
    samples = scrape(FakeEngine())
    assert value(samples, "num_requests_running") == 1
    assert value(samples, "num_requests_waiting") == 2
    assert value(samples, "kv_cache_usage_perc") == 8 / 32
    assert value(samples, "prefix_cache_queries_total") == 100
    assert value(samples, "prefix_cache_hits_total") == 25
    assert value(samples, "num_preemptions_total") == 3
    assert value(samples, "draft_tokens_total") == 9
    assert value(samples, "accepted_tokens_total") == 4


def test_addresses_that_do_not_exist_are_one_row():
    engine = FakeEngine()
    paths = [("GET", f"/made-up-{i}", {}) for i in range(20)]
    *_, page = ask(engine, *paths, ("GET", "/metrics", {}))
    assert 'route="other",status="404"} 20.0' in page.text
    assert "made-up" not in page.text


@pytest.mark.parametrize("key", ["uid", "title", "panels"])
def test_dashboard_can_be_imported(key):
    assert json.loads(DASHBOARD.read_text())[key]


def test_dashboard_asks_for_what_there_is():
    names = {sample.name for sample in scrape(FakeEngine(), {"prompt": [5], "max_tokens": 1})}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"args_fast:\w+", query)}
    assert asked <= names
    assert {name.removeprefix("args_fast:") for name in asked} >= CONTRACT
