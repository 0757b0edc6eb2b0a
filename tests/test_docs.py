"""The README and docs/: links lead somewhere, Python runs as it stands, commands exist."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from typer.main import get_command

from args_fast.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "args_fast/rewards/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Their snippets talk to a server that runs, or need GPUs.
NOT_RUN = {"serve.md", "tensor_parallel.md"}
PRELUDE = """
from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig
from args_fast.tiny_pair import LM, RM
decoder = ArgsDecoder.from_pretrained(LM, RM, device="cpu")
config = DecodingConfig(max_new_tokens=4)
messages = other = [{"role": "user", "content": "How do I teach my spaniel to sit?"}]
lm, reward, tokenizer = decoder.language_model, decoder.reward_model, decoder.tokenizer
inputs = tokenizer("How do I teach", return_tensors="pt")
"""


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    found = BLOCK.finditer(page.read_text())
    return [textwrap.dedent(match[3]) for match in found if match[2] == language]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), f"{link}: no such heading"


def headings(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()) for title in titles)
    return {re.sub(r"\s+", "-", title.strip()) for title in plain}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python") and p.name not in NOT_RUN], ids=name
)
def test_python_runs_as_it_stands(page, monkeypatch):
    if page.parent.name == "rewards":
        pytest.skip("tests/rewards/test_adding_a_reward.py follows its steps")
    monkeypatch.chdir(ROOT)
    names = {"__name__": "__main__"}
    if page.name != "README.md":  # whose script is complete
        exec(PRELUDE, names)
    for code in blocks(page, "python"):
        exec(compile(code, name(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_that_is_not_run_compiles(page):
    for code in blocks(page, "python"):
        flags = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(code, name(page), "exec", flags=flags)


COMMANDS = get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page):
    for code in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "args-fast " in line else []
            while "args-fast" in words:
                words = words[words.index("args-fast") + 1 :]
                check(words, line)


def check(words, line):
    """The first words up to a pipe are a command and options that it has."""
    command = COMMANDS.commands.get(words[0]) if words else None
    if command is None:
        assert words[:1] in (["--help"], ["--version"]), f"no such command: {line}"
        return
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for word in words[1:]:
        if word in ("|", "&", "&&", ";", ">", "args-fast"):
            break
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"{word} is not an option: {line}"


def test_makes_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        written = set(re.findall(r"`make ([a-z-]+)[^`]*`|^make ([a-z-]+)", text, re.MULTILINE))
        assert {a or b for a, b in written} <= targets, name(page)


def test_the_one_test_of_contributing_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    ((file, word),) = re.findall(r"-m pytest -n 0 (\S+) -k (\w+)`", text)
    assert re.search(rf"^def test_\w*{word}", (ROOT / file).read_text(), re.MULTILINE)


def test_the_readme_fits_its_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
