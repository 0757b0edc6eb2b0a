"""Whole answers: the tokens are the decoder's own, and every field is where clients look for it."""

import json
import math

import pytest
import torch
from fake_engine import FakeEngine, tokenizer
from served import NAME, ask, chat, complete
from transformers import AutoTokenizer

from args_fast import DecodingConfig
from args_fast.tiny_pair import HELDOUT, LM

PROMPTS = [json.loads(line)["prompt"] for line in HELDOUT.read_text().splitlines()[:4]]
QUESTION = [{"role": "user", "content": "How do I grow basil?"}]


def rendered(tokenizer):
    """The ids of QUESTION in the tokenizer's template."""
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def post(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({}, {}),
        ({"args": {"k": 1}}, {"k": 1}),
        ({"args": {"k": 5, "w": 4}}, {"k": 5, "w": 4.0}),
        ({"temperature": 0.8, "seed": 3}, {"temperature": 0.8, "seed": 3}),
        ({"stop": ["."]}, {"stop": (".",)}),
        ({"ignore_eos": True}, {"eos_token_ids": ()}),
    ],
)
def test_completion_equals_the_decoder(client, alone, fields, config):
    body = {"model": NAME, "prompt": PROMPTS, "max_tokens": 12, "seed": 0, **fields}
    answer = post(client, "/v1/completions", body)
    expected = alone.generate(PROMPTS, DecodingConfig(max_new_tokens=12, **config))
    assert answer["object"] == "text_completion"
    assert answer["model"] == NAME
    for i, (choice, wanted) in enumerate(zip(answer["choices"], expected, strict=True)):
        assert choice["index"] == i
        assert choice["text"] == wanted.text
        assert choice["args"]["token_ids"] == wanted.token_ids
        assert choice["args"]["finish_reason"] == wanted.finish_reason
        assert choice["finish_reason"] == ("length" if wanted.finish_reason == "length" else "stop")
        rewards = [math.nan if r is None else r for r in choice["args"]["rewards"]]
        assert rewards == pytest.approx(wanted.rewards, abs=1e-4, nan_ok=True)
    prompt, new = (
        sum(len(getattr(e, f)) for e in expected) for f in ("prompt_token_ids", "token_ids")
    )
    details = answer["usage"].pop("prompt_tokens_details")
    assert 0 <= details["cached_tokens"] < prompt
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
    }


def test_usage_counts_the_prompts_tokens_in_the_cache(client):
    prompts = [list(range(1000, 1040)), list(range(1100, 1120))]  # 2 full pages, and 1
    body = {"prompt": prompts, "max_tokens": 2, "n": 2, "temperature": 1.0}
    first, second = (post(client, "/v1/completions", body)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}  # n = 2 read them once
    assert second["prompt_tokens_details"] == {"cached_tokens": 48}


def test_token_ids_are_prompts_too(client, alone):
    ids = [alone.tokenizer(prompt).input_ids for prompt in PROMPTS[:2]]
    for prompts in (ids, ids[0]):
        answer = post(client, "/v1/completions", {"prompt": prompts, "max_tokens": 5})
        expected = alone.generate(prompts, DecodingConfig(max_new_tokens=5))
        assert [c["text"] for c in answer["choices"]] == [e.text for e in expected]


def test_chat_is_the_models_own_template(client, alone):
    answer = post(client, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 12})
    ids = rendered(alone.tokenizer)
    (wanted,) = alone.generate(ids, DecodingConfig(max_new_tokens=12))
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert choice["args"]["token_ids"] == wanted.token_ids
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_samples_have_seeds_in_a_row(client, alone):
    body = {"prompt": PROMPTS[:2], "max_tokens": 8, "n": 3, "temperature": 0.9, "seed": 7}
    answer = post(client, "/v1/completions", body)
    config = DecodingConfig(max_new_tokens=8, temperature=0.9, seed=7, num_return_sequences=3)
    expected = alone.generate(PROMPTS[:2], config)
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    assert [c["args"]["token_ids"] for c in answer["choices"]] == [e.token_ids for e in expected]
    assert [c["args"]["seed"] for c in answer["choices"]] == [7, 8, 9] * 2
    assert len({c["text"] for c in answer["choices"]}) > 2
    prompts = sum(len(expected[i].prompt_token_ids) for i in (0, 3))
    assert answer["usage"]["prompt_tokens"] == prompts  # not once per sample


def test_answer_without_max_tokens_ends_where_the_model_does(client):
    answer = post(client, "/v1/completions", {"prompt": PROMPTS[0]})
    assert answer["choices"][0]["args"]["finish_reason"] == "eos"


def test_rewards_that_were_not_consulted_are_null(client):
    answer = post(client, "/v1/completions", {"prompt": "a", "max_tokens": 2, "args": {"k": 1}})
    assert answer["choices"][0]["args"]["rewards"] == [None, None]


def test_completion_logprobs():
    answer = complete({"prompt": "Hello", "logprobs": 2, "args": {"k": 3}}, FakeEngine(" a b"))
    logprobs = answer.json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [" a", " b"]
    assert logprobs["token_logprobs"] == [-0.25, -0.25]
    assert logprobs["text_offset"] == [0, 2]
    second = tokenizer().decode([201])
    assert logprobs["top_logprobs"] == [{" a": -0.25, second: -1.25}, {" b": -0.25, second: -1.25}]
    answer = complete({"prompt": "Hello", "logprobs": 0}, FakeEngine(" a b"))
    assert answer.json()["choices"][0]["logprobs"]["top_logprobs"] == [{" a": -0.25}, {" b": -0.25}]
    assert complete({"prompt": "Hello"}).json()["choices"][0]["logprobs"] is None


def test_chat_logprobs():
    body = {"logprobs": True, "top_logprobs": 2, "args": {"k": 4}}
    choice = chat(body, FakeEngine(" a"))
    (shown,) = choice.json()["choices"][0]["logprobs"]["content"]
    assert (shown["token"], shown["logprob"], shown["bytes"]) == (" a", -0.25, [32, 97])
    assert [top["logprob"] for top in shown["top_logprobs"]] == [-0.25, -1.25]
    plain = chat({"logprobs": True}, FakeEngine(" a")).json()["choices"][0]["logprobs"]
    assert plain["content"][0]["top_logprobs"] == []


def test_candidates_come_with_text_and_reward():
    body = {"prompt": "Hello", "args": {"k": 3, "w": 2.0, "return_candidates": True}}
    (step,) = complete(body, FakeEngine(" a")).json()["choices"][0]["args"]["candidates"]
    assert [c["logprob"] for c in step] == [-0.25, -1.25, -2.25]
    assert [c["reward"] for c in step] == [0.0, 0.25, 0.5]
    assert [c["score"] for c in step] == [-0.25, -0.75, -1.25]
    assert step[0]["token"] == " a"
    assert "candidates" not in complete({"prompt": "a"}).json()["choices"][0]["args"]


def test_candidates_are_the_engines(client, alone):
    body = {"prompt": PROMPTS[0], "max_tokens": 4, "logprobs": 3}
    choice = post(client, "/v1/completions", body)["choices"][0]
    config = DecodingConfig(max_new_tokens=4, return_candidates=True)
    (wanted,) = alone.generate(PROMPTS[0], config)
    for step, shown in zip(wanted.candidates, choice["args"]["candidates"], strict=True):
        assert [c["token_id"] for c in shown] == [c.token_id for c in step]
        for name in ("logprob", "reward", "score"):
            values = [getattr(c, name) for c in step]
            assert [c[name] for c in shown] == pytest.approx(values, abs=1e-4)
    for top, step in zip(choice["logprobs"]["top_logprobs"], wanted.candidates, strict=True):
        likeliest = sorted(top.values(), reverse=True)[:3]
        assert likeliest == pytest.approx([c.logprob for c in step[:3]], abs=1e-4)


@pytest.mark.parametrize("logprobs", [0, 1, 5])
def test_prompt_is_scored_as_the_language_model_sees_it(client, alone, logprobs):
    """What lm-eval reads: the log-probability of each token, and whether it is the likeliest."""
    ids = alone.tokenizer(PROMPTS[1]).input_ids
    body = {"prompt": PROMPTS[1], "echo": True, "max_tokens": 0, "logprobs": logprobs}
    shown = post(client, "/v1/completions", body)["choices"][0]["logprobs"]
    with torch.inference_mode():
        logits = alone.language_model(torch.tensor([ids])).logits[0, :-1]
    expected = logits.log_softmax(-1)
    own = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert shown["token_logprobs"][0] is None
    assert shown["token_logprobs"][1:] == pytest.approx(own.tolist(), abs=1e-4)
    for i, top in enumerate(shown["top_logprobs"][1:] if logprobs else []):
        likeliest = sorted(top.values(), reverse=True)[:logprobs]
        wanted = expected[i].topk(logprobs).values.tolist()
        assert likeliest == pytest.approx(wanted, abs=1e-4)
        is_likeliest = shown["token_logprobs"][i + 1] == max(top.values())
        assert is_likeliest == (expected[i].argmax().item() == ids[i + 1])


def test_bytes_of_parts_of_a_character_make_the_character():
    engine = FakeEngine("ü😀")
    content = chat({"logprobs": True}, engine).json()["choices"][0]["logprobs"]["content"]
    assert len(content) > 2  # the tiny tokenizer has no token for either character
    assert bytes(b for token in content for b in token["bytes"]).decode() == "ü😀"


def test_impossible_tokens_have_openais_number():
    class Impossible(FakeEngine):
        def token(self, *arguments):
            token = super().token(*arguments)
            return type(token)(**{**vars(token), "logprob": -math.inf, "score": math.inf})

    choice = complete({"prompt": "a", "logprobs": 0}, Impossible(" a")).json()["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
    assert choice["args"]["scores"] == [None]


ECHOED = " a b c"


@pytest.mark.parametrize("prompt", [ECHOED, tokenizer()(ECHOED).input_ids])
def test_echo_repeats_the_prompt(prompt):
    answer = complete({"prompt": prompt, "echo": True, "n": 2}, FakeEngine(" d"))
    assert [c["text"] for c in answer.json()["choices"]] == [" a b c d"] * 2


def test_echo_with_logprobs_scores_the_prompt():
    body = {"prompt": ECHOED, "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = complete(body, FakeEngine(" d")).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [" a", " b", " c", " d"]
    assert logprobs["token_logprobs"] == [None, -1.0, -2.0, -0.25]
    assert logprobs["text_offset"] == [0, 2, 4, 6]
    likeliest = tokenizer().decode([100])
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {likeliest: -0.5, " b": -1.0}


def test_echo_without_new_tokens_decodes_nothing():
    engine = FakeEngine()
    body = {"prompt": ECHOED, "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = complete(body, engine).json()
    (choice,) = answer["choices"]
    assert choice["text"] == ECHOED
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert answer["usage"]["completion_tokens"] == 0
    assert not engine.requests


def test_tokenize(client, alone):
    ids = alone.tokenizer(PROMPTS[0]).input_ids
    answer = post(client, "/tokenize", {"prompt": PROMPTS[0]})
    assert answer == {"tokens": ids, "count": len(ids), "max_model_len": 512}
    turn = rendered(alone.tokenizer)
    assert post(client, "/tokenize", {"messages": QUESTION})["tokens"] == turn
    for body in ({}, {"prompt": "a", "messages": QUESTION}):
        assert "either prompt or messages" in client.post("/tokenize", json=body).text


def with_template(template):
    own = AutoTokenizer.from_pretrained(LM)
    own.chat_template = template
    return FakeEngine(own=own)


def test_model_without_a_template_takes_no_conversations():
    assert "has no chat template" in chat({}, with_template(None)).json()["error"]["message"]
    (models,) = ask(with_template(None), ("GET", "/v1/models", {}))
    assert models.json()["data"][0]["args"]["chat"] is False


def test_template_that_refuses_says_why():
    response = chat({}, with_template("{{ raise_exception('roles must alternate') }}"))
    assert response.status_code == 400
    assert "roles must alternate" in response.json()["error"]["message"]


def test_rewards_read_what_was_sent(service, client, monkeypatch):
    """Rewards with a template or a tokenizer of their own need the text, not its ids."""
    sources = []
    decode = service.engine.decode

    def record(prompt, config, receive):
        sources.append(prompt)
        return decode(prompt, config, receive)

    monkeypatch.setattr(service.engine, "decode", record)
    post(client, "/v1/completions", {"prompt": [PROMPTS[0], "a"], "max_tokens": 1})
    post(client, "/v1/completions", {"prompt": [5, 6], "max_tokens": 1})
    post(client, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 1})
    assert sources == [PROMPTS[0], "a", [5, 6], QUESTION]


def test_special_token_is_a_stop(client, alone):
    (end,) = set(alone.tokenizer.all_special_tokens) & {"<|endoftext|>"}
    body = {"prompt": PROMPTS[0], "ignore_eos": True, "stop": end}
    choice = post(client, "/v1/completions", body)["choices"][0]
    assert choice["args"]["token_ids"][-1] == alone.tokenizer.convert_tokens_to_ids(end)
    assert choice["args"]["finish_reason"] == "stop"
