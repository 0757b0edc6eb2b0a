"""What a request says is data: nothing of it is evaluated, opened, or looked up."""

import sys
import threading

import pytest
from fake_engine import FakeEngine, tokenizer
from served import ask, chat, complete

MARK = "zebra-7f3a"
OPENING = {
    "open",
    "os.open",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "urllib.Request",
}
watching = threading.Event()
seen: list[tuple[str, str]] = []


def _watch(event, arguments):
    if watching.is_set() and event in OPENING:
        seen.append((event, repr(arguments)))


sys.addaudithook(_watch)  # cannot be taken away again; it does nothing while nobody watches


@pytest.fixture
def opened():
    """Whatever the process opened meanwhile."""
    seen.clear()
    watching.set()
    yield seen
    watching.clear()


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": f"/tmp/{MARK}"},
        {"prompt": f"file:///etc/{MARK}"},
        {"prompt": "a", "model": f"/tmp/{MARK}"},
        {"prompt": "a", "model": f"https://{MARK}.example/model"},
        {"prompt": "a", "suffix": f"http://{MARK}.example"},
        {"prompt": "a", "lora_path": f"/tmp/{MARK}", "callback": f"http://{MARK}.example"},
        {"prompt": "a", "args": {"reward": f"/tmp/{MARK}"}},
    ],
)
def test_no_file_or_address_of_a_request_is_opened(opened, body):
    complete(body)
    assert not [each for each in opened if MARK in each[1]]
    assert not [each for each in opened if each[0] != "open"]


def test_no_image_of_a_conversation_is_fetched(opened):
    part = {"type": "image_url", "image_url": {"url": f"http://{MARK}.example/a.png"}}
    assert chat({"messages": [{"role": "user", "content": [part]}]}).status_code == 400
    assert not [each for each in opened if each[0] != "open" or MARK in each[1]]


@pytest.mark.parametrize(
    "text",
    [
        "{{ 7 * 7 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{# a comment",
    ],
)
def test_template_of_a_message_is_text(text):
    """A model's template gets messages as values; what they contain is not a template."""
    engine = FakeEngine()
    assert chat({"messages": [{"role": "user", "content": text}]}, engine).status_code == 200
    assert f"Human: {text}" in tokenizer().decode(engine.requests[0][0])


@pytest.mark.parametrize("field", ["chat_template", "guided_regex", "guided_grammar", "documents"])
def test_templates_and_patterns_are_not_taken(field):
    assert complete({"prompt": "a", field: "(a+)+$"}).status_code == 400
    assert chat({field: "{{ 7 * 7 }}"}).status_code == 400


@pytest.mark.parametrize("stop", ["(a+)+$", ".*", "[", "\\"])
def test_stop_strings_are_not_patterns(stop):
    assert (
        complete({"prompt": "a", "stop": stop}, FakeEngine("aaaa")).json()["choices"][0]["text"]
        == "aaaa"
    )
    found = complete({"prompt": "a", "stop": stop}, FakeEngine(f"one{stop}two"))
    assert found.json()["choices"][0]["text"] == "one"


def test_other_sites_cannot_post():
    """A browser sends text/plain to other sites without asking; JSON it has to ask for."""
    body = {"content": b'{"prompt": "a"}', "headers": {"Content-Type": "text/plain"}}
    ask_first = {"headers": {"Origin": "http://evil", "Access-Control-Request-Method": "POST"}}
    plain, preflight = ask(
        FakeEngine(),
        ("POST", "/v1/completions", body),
        ("OPTIONS", "/v1/completions", ask_first),
    )
    assert plain.status_code == 400
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


def test_page_cannot_be_framed():
    (page,) = ask(FakeEngine(), ("GET", "/", {}))
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
