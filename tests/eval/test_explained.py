"""A decode explained: every step with its candidates, on a page that needs nothing else."""

import json
import re
import shutil
import subprocess

import pytest
from naive_decoder import naive_tiny_decoder

from args_fast import DecodingConfig
from args_fast.errors import EvaluationError
from args_fast.eval.explain import explain, page

PROMPT = "\n\nHuman: How do I grow </script> mint?\n\nAssistant:"
CONFIG = DecodingConfig(k=4, w=1.5, max_new_tokens=10)


@pytest.fixture(scope="module")
def explained():
    return explain(naive_tiny_decoder(), PROMPT, CONFIG)


def test_every_step_has_its_candidates_and_its_choice(explained):
    decoder = naive_tiny_decoder()
    (expected,) = decoder.generate([PROMPT], CONFIG)
    guided = explained["decodes"][1]
    assert guided["name"] == "ARGS"
    assert guided["text"] == expected.text
    chosen = [step["candidates"][step["chosen"]] for step in guided["steps"]]
    assert [candidate["id"] for candidate in chosen] == expected.token_ids
    for step, own, reward in zip(guided["steps"], chosen, expected.rewards, strict=True):
        assert own["score"] == max(candidate["score"] for candidate in step["candidates"])
        assert own["reward"] == step["reward"] == pytest.approx(reward, abs=1e-5)
        assert own["score"] == pytest.approx(own["logprob"] + 1.5 * own["reward"], abs=1e-4)
        logprobs = [candidate["logprob"] for candidate in step["candidates"]]
        assert logprobs == sorted(logprobs, reverse=True)


def test_greedy_stands_next_to_it_with_the_rewards_of_its_text(explained):
    decoder = naive_tiny_decoder()
    greedy = explained["decodes"][0]
    (expected,) = decoder.generate([PROMPT], DecodingConfig(k=1, w=0.0, max_new_tokens=10))
    assert (greedy["name"], greedy["text"]) == ("greedy", expected.text)
    assert all(step["chosen"] == 0 for step in greedy["steps"])
    rewards = decoder.token_rewards(PROMPT, expected.token_ids)
    assert [step["reward"] for step in greedy["steps"]] == pytest.approx(rewards, abs=1e-5)
    assert greedy["steps"][0]["candidates"][0]["reward"] is None


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (DecodingConfig(k=4, temperature=0.7, max_new_tokens=3), ["greedy", "ARGS-stochastic"]),
        (DecodingConfig(k=4, w=0.0, max_new_tokens=3), ["greedy"]),
        (DecodingConfig(k=4, w=0.0, temperature=1.0, max_new_tokens=3), ["sampling"]),
        (DecodingConfig(k=1, max_new_tokens=3), ["greedy"]),
        (DecodingConfig(k=4, num_return_sequences=3, max_new_tokens=3), ["greedy", "ARGS"]),
    ],
)
def test_decodes_are_named_by_what_they_are(config, names):
    found = explain(naive_tiny_decoder(), PROMPT, config)
    assert [decode["name"] for decode in found["decodes"]] == names


def test_one_decode_can_stand_alone():
    found = explain(naive_tiny_decoder(), PROMPT, CONFIG, compare=False)
    assert [decode["name"] for decode in found["decodes"]] == ["ARGS"]


def test_pieces_add_up_to_the_text(explained):
    for decode in explained["decodes"]:
        assert "".join(step["text"] for step in decode["steps"]) == decode["text"]


def test_a_decoder_without_a_tokenizer_is_refused():
    decoder = naive_tiny_decoder()
    decoder.tokenizer = None
    with pytest.raises(EvaluationError, match="has no tokenizer"):
        explain(decoder, PROMPT, CONFIG)


# ---- the page ------------------------------------------------------------------------------------


def held(shown):
    """The data in a page, as its script reads them."""
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', shown, re.S)
    return json.loads(content[1])


def test_the_page_holds_the_data_whatever_is_in_them(explained):
    assert held(page(explained)) == explained


def test_the_page_needs_nothing_from_elsewhere(explained):
    shown = page(explained)
    assert "default-src 'none'" in shown
    outside = re.findall(r"""(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest""", shown)
    assert outside == []
    addresses = set(re.findall(r"https?://[^\"'\s]+", shown))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PRESS = """<script>
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const report = [];
const say = () => report.push(document.getElementById("heading").textContent);
say();
for (const key of KEYS) { press(key); say(); }
document.getElementById("t0-2").dispatchEvent(new MouseEvent("mouseenter"));
say();
const wide = document.documentElement.scrollWidth > innerWidth ? "too wide" : "fits";
document.title = JSON.stringify([...report, wide, document.querySelectorAll("#rows tr").length]);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_keys_and_hover_move_through_the_steps(tmp_path, explained, width):
    keys = ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "o"]
    shown = page(explained).replace("</body>", PRESS.replace("KEYS", json.dumps(keys)))
    file = tmp_path / "page.html"
    file.write_text(shown)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    import html

    said = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    *headings, hovered, fits, rows = said
    first = next(i for i, s in enumerate(explained["decodes"][1]["steps"], 1) if s["chosen"])
    assert headings == [
        f"Step {step} of 10{name}, k = 4"
        for step, name in [
            *((first, "ARGS"), (1, "ARGS"), (2, "ARGS"), (3, "ARGS"), (2, "ARGS")),
            *((10, "ARGS"), (10, "ARGS"), (10, "greedy")),
        ]
    ]
    assert hovered == "Step 3 of 10greedy, k = 4"
    assert fits == "fits"
    assert rows == 4
