"""Programs of others against ``args-fast serve``: each in an environment of its own.

    python tests/external/run.py                      # all of them
    python tests/external/run.py openai-1 schemathesis --seconds 600

Environments are made under build/external/, with pip and its own configuration; logs and a summary
go to bench/results/external/. It takes minutes and a package index, so ``make test`` has no part of
it: ``make test-external`` has.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / "build" / "external"
RESULTS = ROOT / "bench" / "results" / "external"
LM = ROOT / "args_fast" / "tiny_pair" / "lm"
KEY = "key-of-the-external-tests"


@dataclass(frozen=True)
class Check:
    """One program.

    Attributes:
        name: of its environment and its log.
        packages: what pip installs.
        command: run in that environment; {url}, {key}, {seconds}, {lm}, {out} and {results} are
            filled in, and the first word is looked for next to its Python.
        options: of the server that it talks to.
        compare: a second command, run by this Python, on what the first left in {out}.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    options: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()


OPENAI = ("python", str(HERE / "openai_client.py"))
CHECKS = (
    Check("openai-newest", ("openai",), OPENAI),
    Check("openai-2", ("openai>=2,<3",), OPENAI),
    Check("openai-1", ("openai>=1,<2",), OPENAI),
    Check("litellm", ("litellm",), ("python", str(HERE / "litellm_client.py"))),
    Check(
        "schemathesis",
        ("schemathesis",),
        (
            *("schemathesis", "run", "{url}/openapi.json", "--url", "{url}"),
            *("--header", "Authorization: Bearer {key}", "--checks", "not_a_server_error"),
            *("--phases", "examples,coverage,fuzzing", "--max-time", "{seconds}"),
            *("--generation-deterministic", "--no-color", "--request-timeout", "60"),
        ),
        ("--max-model-len", "64"),  # it asks for answers of any length, one after the other
    ),
    Check(
        "lm-eval",
        ("lm-eval[api]", "transformers"),
        ("python", str(HERE / "lm_eval_client.py"), "{lm}", "{out}"),
        compare=(sys.executable, str(HERE / "lm_eval_compare.py"), "{lm}", "{out}"),
    ),
    Check(
        "guidellm",
        ("guidellm",),
        (
            *("guidellm", "run", "--disable-progress"),
            *("--backend", "kind=openai_http,target={url},api_key={key},http2=false"),
            *("--profile", "kind=sweep,sweep_size=5,max_concurrency=16"),
            *("--constraint", "kind=max_duration,seconds={seconds}"),
            *("--tokenizer", "kind=huggingface_auto,model={lm}"),
            *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32"),
            *("--output", "kind=console", "--output", "kind=csv,path={results}/guidellm.csv"),
        ),
    ),
)


@contextlib.contextmanager
def server(log: Path, *arguments: str) -> Iterator[str]:
    """``args-fast serve`` on the embedded pair, at an address that is free."""
    command = [sys.executable, "-m", "args_fast", "serve", "--port", "0", *arguments]
    environment = os.environ | {"ARGS_FAST_API_KEYS": KEY, "PYTHONPATH": str(ROOT)}
    with open(log, "w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        found = None
        while found is None:
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {log.read_text()}")
            time.sleep(0.2)
            found = re.search(r"a page to try it: (http://\S+)/", log.read_text())
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def python_of(check: Check) -> Path:
    """The Python of a check's environment, made where it is not there yet."""
    folder = ENVIRONMENTS / check.name
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *check.packages], check=True)
        (folder / ".installed").touch()
    return python


def versions(python: Path, check: Check) -> str:
    """The installed versions of what was asked for."""
    names = [re.split(r"[\[<>=]", package)[0] for package in check.packages]
    shown = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True
    )
    installed = {
        each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(shown.stdout)
    }
    return ", ".join(f"{name} {installed[name]}" for name in names)


def run(check: Check, url: str, narrow: str, seconds: int) -> dict[str, object]:
    """Run one check; its log is kept."""
    python = python_of(check)
    out = ENVIRONMENTS / f"{check.name}.out.json"
    out.unlink(missing_ok=True)
    values = {"url": url, "key": KEY, "seconds": seconds, "lm": LM, "out": out}
    values["results"] = RESULTS
    environment = os.environ | {
        "ARGS_URL": url,
        "ARGS_NARROW_URL": narrow,
        "ARGS_KEY": KEY,
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("PYTHONPATH", None)
    log = RESULTS / f"{check.name}.log"
    began, status = time.monotonic(), 0
    with open(log, "w") as file:
        for command in filter(None, (check.command, check.compare)):
            words = [word.format(**values) for word in command]
            own = python.parent / words[0]
            if own.exists():
                words[0] = str(own)
            status = (
                status
                or subprocess.run(
                    words, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ENVIRONMENTS
                ).returncode
            )
    lines = log.read_text().split("\n")
    log.write_text("\n".join(line.rpartition("\r")[2].rstrip() for line in lines))  # progress bars
    for file in RESULTS.glob(f"{check.name}.*"):
        file.write_text(_published(file.read_text()))
    took = round(time.monotonic() - began)
    shown = versions(python, check)
    return {"check": check.name, "versions": shown, "status": status, "seconds": took}


def _published(text: str) -> str:
    """A log, or what a client wrote next to it, without where it was made."""
    places = {str(ROOT): ".", str(Path.home()): "~", KEY: "KEY", platform.release(): "KERNEL"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def main() -> int:
    """Run the checks that are named, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", help="names; all where there are none")
    parser.add_argument("--seconds", type=int, default=600, help="of schemathesis and guidellm")
    given = parser.parse_args()
    unknown = set(given.checks) - {check.name for check in CHECKS}
    if unknown:
        parser.error(f"{', '.join(unknown)}: known are {', '.join(c.name for c in CHECKS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended too
    RESULTS.mkdir(parents=True, exist_ok=True)
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    log = ENVIRONMENTS / "narrow.server.log"
    with server(log, "--max-batch-size", "1", "--max-waiting", "0") as narrow:
        for check in CHECKS:
            if given.checks and check.name not in given.checks:
                continue
            with server(ENVIRONMENTS / f"{check.name}.server.log", *check.options) as url:
                note(run(check, url, narrow, given.seconds))
    return sum(1 for each in summary() if each["status"])


def summary() -> list[dict[str, object]]:
    """What the last run of each check gave."""
    file = RESULTS / "summary.json"
    return json.loads(file.read_text())["checks"] if file.exists() else []


def note(result: dict[str, object]) -> None:
    """Put a result in the summary, in place of an earlier one, and say it."""
    kept = [each for each in summary() if each["check"] != result["check"]]
    order = [check.name for check in CHECKS]
    checks = sorted([*kept, result], key=lambda each: order.index(str(each["check"])))
    about = {"python": platform.python_version(), "checks": checks}
    (RESULTS / "summary.json").write_text(json.dumps(about, indent=2) + "\n")
    ending = f"failed with {result['status']}" if result["status"] else "passed"
    print(f"{result['check']} ({result['versions']}): {ending}, {result['seconds']} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
