"""examples/rewards: the functions that are shown there, as they are."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import transformers as t
from encoders import ENCODERS
from refusals import refuses
from tiny_models import language_model, tokens
from vocabularies import byte_level, wordpiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import RewardError
from args_fast.rewards import Function

EXAMPLES = Path(__file__).parents[2] / "examples" / "rewards"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_sentiment_makes_the_answer_brighter():
    import sentiment
    from show import show

    assert sentiment.sentiment(["", ""], ["A great, lovely day", "bad"]) == [0.5, -1.0]
    plain, guided = show(sentiment.reward, w=20.0)
    before, after = sentiment.sentiment(["", ""], [plain, guided])
    assert after > before


def test_a_regular_expression_keeps_words_out():
    import regular_expression
    from show import show

    plain, guided = show(regular_expression.reward, w=5.0)
    penalty = regular_expression.Penalty(r"\b(you|your)\b")
    before, after = penalty(["", ""], [plain, guided])
    assert before < 0
    assert after > before


def test_similarity_is_highest_for_the_text_itself(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from similarity import Similarity

    t.BertModel(ENCODERS["bert"](num_labels=1)).save_pretrained(tmp_path)
    wordpiece().save_pretrained(tmp_path)
    modules = [parts.Transformer(str(tmp_path)), parts.Pooling(32)]
    encoder = sentences.SentenceTransformer(modules=modules, device="cpu")
    function = Similarity(encoder, "the cab is here")
    same, other, empty = function([""] * 3, ["the cab is here", "a dog", ""])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other < same
    assert empty < same
    pair = ArgsDecoder(language_model(), Function(function), tokenizer=byte_level())
    config = DecodingConfig(k=3, max_new_tokens=3, eos_token_ids=[])
    (result,) = pair.generate(tokens(5), config)
    assert len(result.rewards) == 3


class Server(BaseHTTPRequestHandler):
    """Gives the length of each response as its reward; every second request fails at first."""

    protocol_version = "HTTP/1.1"
    requests, failures, connections = 0, 0, set()

    def do_POST(self):
        Server.requests += 1
        Server.connections.add(self.client_address)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fails = Server.requests <= Server.failures
        answer = json.dumps({"rewards": [len(r) / 10 for r in body["responses"]]}).encode()
        self.send_response(500 if fails else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    Server.requests, Server.failures, Server.connections = 0, 0, set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("failures", [0, 2, 100])
def test_an_endpoint_guides_and_is_tried_again(url, failures):
    from endpoint import endpoint

    Server.failures = failures
    pair = ArgsDecoder(language_model(), endpoint(url), tokenizer=byte_level())
    config = DecodingConfig(k=4, w=5.0, max_new_tokens=4, eos_token_ids=[])
    if failures == 100:
        with refuses(RewardError, "'endpoint' raised HTTPStatusError", "500"):
            pair.generate(tokens(5), config)
        return
    (result,) = pair.generate(tokens(5), config)
    assert len(result.rewards) == 4
    assert result.rewards[-1] > 0
    assert Server.requests == 4 + failures
    assert len(Server.connections) == 1  # kept from step to step
