"""Several kinds of reward at one server: each request gets what its own rewards give it alone."""

import asyncio
import time

import httpx
import pytest
import torch
from encoders import SIZES
from served import events, on_loopback
from transformers import BertConfig, BertForSequenceClassification
from vocabularies import wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.rewards.specs import load_rewards
from args_fast.serve.engine_view import EngineView
from args_fast.tiny_pair import LM, RM

PROMPT = "\n\nHuman: How do I keep my basil alive over the winter?\n\nAssistant:"
ASKED = (
    "plain",
    "closed",
    "encoder",
    "brief",
    {"plain": 1.0, "closed": -0.5},
    {"encoder": 2.0, "brief": 0.5},
    None,  # all of them, as the server's own mixture weighs them
)
NEW = 12


class Brevity:
    """Likes short answers. Its first call waits until all requests are at the server, so that they
    are decoded together; it notes how many were.

    Attributes:
        service: whose requests it counts; None outside a server.
        together: the largest number of requests that were decoded while it was asked.
    """

    def __init__(self):
        self.service = None
        self.together = 0

    def __call__(self, prompts, responses):
        if self.service is not None:
            end = time.monotonic() + 30
            while not self.together and self.service.admission.taken < len(ASKED):
                assert time.monotonic() < end
                time.sleep(0.005)
            self.together = max(self.together, self.service.engine.running)
        return [-len(response) / 50 for response in responses]


brief = Brevity()


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Two of the same: a classifier, one with closing ids, an encoder with a tokenizer of its own,
    and a function; as ``args-fast serve --rm NAME=MODEL ... --weights ...`` loads them."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = wordpiece()
    torch.manual_seed(3)
    config = BertConfig(**SIZES | {"vocab_size": len(tokenizer)}, num_labels=1)
    for part in (BertForSequenceClassification(config), tokenizer):
        part.save_pretrained(folder)
    specs = {
        "plain": {"path": str(RM), "weight": 1.0},
        "closed": {"path": str(RM), "closing_ids": [5, 6], "weight": 0.5},
        "encoder": {"path": str(folder), "weight": 1.5},
        "brief": {"function": f"{__name__}:brief", "weight": 0.2},
    }
    options = {"device": "cpu", "max_batch_size": 8}
    return [ArgsDecoder.from_pretrained(LM, specs, **options) for _ in range(2)]


@pytest.fixture(scope="module")
def server(decoders):
    with on_loopback(EngineView(decoders[0])) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def expected(decoders):
    config = {"k": 6, "w": 1.0, "max_new_tokens": NEW, "eos_token_ids": (), "seed": 3}
    results = [
        decoders[1].generate(PROMPT, DecodingConfig(reward=reward, **config))[0] for reward in ASKED
    ]
    assert len({tuple(result.token_ids) for result in results}) > 4  # or it would show nothing
    return results


def body(reward, **more):
    args = {"k": 6, "w": 1.0} | ({} if reward is None else {"reward": reward})
    return {"prompt": PROMPT, "max_tokens": NEW, "ignore_eos": True, "seed": 3, "args": args} | more


def test_requests_of_every_reward_are_decoded_together(server, expected):
    url, service = server

    async def ask_all():
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            asked = [client.post("/v1/completions", json=body(reward)) for reward in ASKED]
            return await asyncio.gather(*asked)

    brief.service, brief.together = service, 0
    try:
        responses = asyncio.run(ask_all())
    finally:
        brief.service = None
    for response, wanted in zip(responses, expected, strict=True):
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        check(choice["args"], wanted)
        assert choice["text"] == wanted.text
    assert brief.together > 1


def check(args, wanted):
    assert args["token_ids"] == wanted.token_ids
    assert args["rewards"] == pytest.approx(wanted.rewards, abs=1e-4)
    assert args["scores"] == pytest.approx(wanted.scores, abs=1e-4)
    assert sorted(args.get("rewards_by_name", ())) == sorted(wanted.rewards_by_name or ())
    for name, values in (wanted.rewards_by_name or {}).items():
        assert args["rewards_by_name"][name] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("index", [3, 4, 5, 6])
def test_stream_has_the_raw_reward_of_each_name(server, expected, index):
    response = httpx.post(
        server[0] + "/v1/completions", json=body(ASKED[index], stream=True), timeout=120
    )
    pieces = [c["args"] for event in events(response.text) for c in event["choices"]]
    pieces = [piece for piece in pieces if "token_ids" in piece]
    joined = {
        field: [value for piece in pieces for value in piece[field]]
        for field in ("token_ids", "rewards", "scores")
    }
    joined["rewards_by_name"] = {
        name: [value for piece in pieces for value in piece["rewards_by_name"][name]]
        for name in pieces[0].get("rewards_by_name", ())
    }
    check(joined, expected[index])


def test_models_card_names_the_rewards(server):
    (model,) = httpx.get(server[0] + "/v1/models").json()["data"]
    assert model["args"]["rewards"] == ["mixture", "plain", "closed", "encoder", "brief"]


def test_unknown_reward_is_refused_with_the_names(server):
    response = httpx.post(server[0] + "/v1/completions", json=body("helpful"))
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "'helpful'" in message
    for name in ("plain", "closed", "encoder", "brief"):
        assert name in message


def test_weights_of_the_command_line_are_the_defaults():
    named = load_rewards({"a": {"function": f"{__name__}:brief", "weight": 0.2}})
    assert [(name, weight) for name, _, weight in named.parts] == [("a", 0.2)]
