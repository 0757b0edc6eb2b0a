"""The page in a real browser, on a fake engine: what it shows, and that it needs no other host."""

import json
import re
import shutil

import httpx
import pytest
from fake_engine import FakeEngine
from served import on_loopback

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-sync", "--no-first-run", "--disable-component-update"),
)
MINUS = "\N{MINUS SIGN}"
ANSWER = "Green 😀 basil"
STEPS = len(FakeEngine(ANSWER).ids)
TOKENIZER = FakeEngine().tokenizer
REFUSED = "Failed to load resource"  # what Chromium itself says of a 400


def fake():
    engine = FakeEngine(ANSWER)
    engine.max_model_len = 512
    return engine


@pytest.fixture(scope="module")
def server():
    with on_loopback(fake(), demonstration=True) as (url, service):
        yield url, service.engine


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page, which has to be silent on the console and ask no other host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server[0] + "/")
    expect(page.locator("#model")).to_contain_text("512 tokens")
    yield page
    assert [each for each in said if REFUSED not in each] == []
    assert all(url.startswith((server[0], "data:")) for url in asked)
    context.close()


def expect(locator):
    from playwright.sync_api import expect as wait_for

    return wait_for(locator)


def decode(page):
    page.locator("#run").click()
    for name in ("greedy", "args"):
        expect(page.locator(f"#{name}-summary")).to_contain_text(f"{STEPS} tokens")


def text_of(page, name):
    return page.locator(f"#{name}").text_content()


def test_page_needs_nothing_from_a_network(server):
    response = httpx.get(server[0] + "/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", response.text)
    assert "http://" not in response.text.replace("http://127.0.0.1", "")


def test_both_panels_stream_side_by_side(page, server):
    decode(page)
    for name in ("greedy", "args"):
        shown = text_of(page, name)
        assert shown.replace("·", "").replace("�", "").startswith("Green")
        assert "😀" in shown
    configs = [config for _, config in server[1].requests[-2:]]
    assert {config.w for config in configs} == {1e-30, 1.5}  # greedy, with its rewards read
    assert all(config.return_candidates for config in configs)


def test_tokens_are_coloured_by_reward(page):
    decode(page)
    colours = [
        page.locator(f"#args-{i}").evaluate("e => getComputedStyle(e).backgroundColor")
        for i in range(STEPS)
    ]
    assert len(set(colours)) == STEPS  # the fake's rewards rise with every token
    assert page.locator("#lowest").text_content() == "+0.00"
    assert page.locator("#highest").text_content() == f"+{(STEPS - 1) / 2:.2f}"


def test_click_shows_the_candidates(page):
    decode(page)
    page.locator("#args-0").click()
    expect(page.locator("#caption")).to_contain_text("ARGS, token 1: the 10 most likely tokens")
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(10)
    assert rows.nth(0).locator("td").all_text_contents()[1:] == [
        f"{MINUS}0.25",
        "+0.00",
        f"{MINUS}0.25",
        "✓",
    ]
    assert rows.nth(2).locator("td").all_text_contents()[1:] == [
        f"{MINUS}2.25",
        "+0.50",
        f"{MINUS}1.50",
        "",
    ]


def test_keyboard_alone_is_enough(page):
    page.locator("#turns textarea").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#args-summary")).to_contain_text("tokens")
    page.locator("#args").focus()
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("End", STEPS), ("Home", 1)):
        page.keyboard.press(key)
        expect(page.locator("#caption")).to_contain_text(f"ARGS, token {place}:")
    selected = page.locator("#args [aria-selected=true]")
    expect(selected).to_have_count(1)
    assert page.locator("#args").get_attribute("aria-activedescendant") == "args-0"


def test_every_control_has_a_name(page):
    for control in page.locator("button, input, select, textarea, [role=listbox]").all():
        name = control.evaluate(
            "e => e.ariaLabel || e.labels?.[0]?.textContent || e.matches('button') && e.textContent"
        )
        assert name, control.evaluate("e => e.outerHTML")
    decode(page)
    label = page.locator("#args-1").get_attribute("aria-label")
    assert "reward +0.50" in label


def test_conversation_goes_on_with_the_answer(page, server):
    decode(page)
    page.locator("#keep").click()
    turns = page.locator("#turns li")
    expect(turns).to_have_count(3)
    assert turns.nth(1).locator("select").input_value() == "assistant"
    assert turns.nth(1).locator("textarea").input_value() == ANSWER
    turns.nth(2).locator("textarea").fill("More?")
    decode(page)
    prompt = TOKENIZER.decode(server[1].requests[-1][0])
    assert f"Assistant: {ANSWER}" in prompt
    assert "Human: More?" in prompt


def test_text_and_options_are_sent_as_they_are(page, server):
    page.locator("input[value=text]").check()
    page.locator("#prompt").fill("One\ntwo")
    page.locator("#w-number").fill("3.25")
    page.locator("#k").fill("7")
    page.locator("#max").fill(str(STEPS))
    page.locator("#temperature").fill("0.5")
    page.locator("#seed").fill("9")
    decode(page)
    by_w = {config.w: (prompt, config) for prompt, config in server[1].requests[-2:]}
    prompt, config = by_w[3.25]
    assert TOKENIZER.decode(prompt) == "One\ntwo"
    assert (config.k, config.temperature, config.seed, config.max_new_tokens) == (7, 0.5, 9, STEPS)
    assert by_w[1e-30][1].temperature is None
    assert page.locator("#k-number").input_value() == "7"


def test_copied_code_is_the_request(page, server):
    page.locator("#turns textarea").fill('It\'s "quoted"')
    page.locator("#curl").click()
    code = page.locator("#code").text_content()
    body = code[code.index("-d '") + 4 : -1].replace("'\\''", "'")
    sent = json.loads(body)
    assert sent["messages"] == [{"role": "user", "content": 'It\'s "quoted"'}]
    assert httpx.post(server[0] + "/v1/chat/completions", json=sent).status_code == 200
    page.locator("#python").click()
    python = page.locator("#code").text_content()
    compile(python, "copied", "exec")
    assert 'extra_body={"args": {"k":10,"w":1.5}}' in python
    assert server[0] in python


def test_refusal_is_shown(page):
    page.locator("#max").fill("5000")
    page.locator("#run").click()
    expect(page.locator("#error")).to_contain_text("maximum context length is 512")
    expect(page.locator("#halt")).to_be_disabled()


def test_key_is_asked_for_and_used(browser):
    with on_loopback(fake(), api_keys=("secret",)) as (url, _):
        page = browser.new_page()
        page.goto(url + "/")
        expect(page.locator("#model")).to_contain_text("wants an API key")
        page.locator("#key").fill("secret")
        page.locator("#key").blur()
        expect(page.locator("#model")).to_contain_text("512 tokens")
        decode(page)
        assert page.evaluate("() => localStorage.length + sessionStorage.length") == 0
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_page_fits_and_can_be_read(browser, server, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(server[0] + "/")
    decode(page)
    page.locator("#args-0").click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for i in range(STEPS):  # WCAG AA, text on its colour
        ink, ground = (luminance(page, f"#args-{i}", name) for name in ("color", "backgroundColor"))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5
    page.close()


def luminance(page, selector, property):
    """Relative luminance of a colour, as a canvas paints it."""
    r, g, b = page.locator(selector).evaluate(
        """(e, property) => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.fillStyle = getComputedStyle(e)[property];
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        }""",
        property,
    )
    linear = [x / 3294.6 if x <= 10 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in (r, g, b)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
