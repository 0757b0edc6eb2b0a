"""Messages, help texts, docstrings and documents are plain English: none of the constructions of
docs/style.md's list."""

import ast
import re
from pathlib import Path

import pytest

import args_fast

PACKAGE = Path(args_fast.__file__).parent
ROOT = PACKAGE.parent

# A pattern, and what a native engineer would write.
CONSTRUCTIONS = {
    r"(?<!there )\b(is|are|was|were) no\b(?! (longer|more))": "is not a",
    r"\bgo(es|ing|ne)? on\b(?! (the|a|one|two|stdout|stderr))": "continue, resume",
    r"\bnobody\b": "no one, no request",
    r"\banew\b": "again, restart",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bin vain\b": "for nothing",
    r"\bbeside\b(?! the point)": "next to, in addition to",
    r"\bbehind\b (?!(the scenes|a proxy|a load))": "after",
    r"\bwhoever\b": "the caller, anyone who",
    r"\b(tells|told) (how|what|which|that|whether)\b": "reports, says",
    r"\bcannot be had\b|\bto be had\b|\bcan be had\b": "is not available",
    r"\bfurther on\b": "later",
    r"\bof each\.": "name the subject",
    r"\bso many\b(?! (as|that|in|steps|requests|lines|tokens))": "that many",
    r"\bholds [^.]{1,60}, which is no\b": "contains ..., which is not",
    r"\bthe ones? that (comes|come) (first|last)\b": "the first, the last",
    r"\bnot any more\b": "no longer",
    r"\bas ever\b": "as usual",
    r"\bby itself it\b": "on its own",
    r"\blets? (?:it|them) be\b": "leaves it",
}


def strings(path):
    """Every string of a module, docstrings included, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def prose():
    """(where, text) of all that a user or a reader meets."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in ("bench", "kernels"):
            for line, text in strings(path):
                yield f"{path.relative_to(ROOT)}:{line}", text
    for path in [
        ROOT / "README.md",
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]:
        if path.name in ("LICENSE.md",):
            continue
        fenced = re.sub(
            r"```.*?```", lambda m: "\n" * m.group().count("\n"), path.read_text(), flags=re.S
        )
        for line, text in enumerate(fenced.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{line}", text
    for line, text in enumerate((ROOT / "Makefile").read_text().splitlines(), 1):
        if "##" in text:
            yield f"Makefile:{line}", text.partition("##")[2]


def _blank_lines(code):
    return "\n" * code.group().count("\n")


def complaints(texts):
    return [
        f"{where}: {match.group()!r}: say {better!r}"
        for where, text in texts
        for pattern, better in CONSTRUCTIONS.items()
        if (match := re.search(pattern, text))
    ]


def test_prose_is_plain_english():
    left = complaints(prose())
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "planted",
    [
        "contains 70000, which is no id of this vocabulary",
        "the job goes on where it was",
        "the row behind the prefix",
        "nobody waits for it",
        "steps: of each.",
    ],
)
def test_a_planted_construction_is_caught(planted):
    assert complaints([("planted", planted)])
