"""The memory of ``args-fast batch`` does not depend on the length of its input."""

import json
import os
import subprocess
import sys
from pathlib import Path

# The whole command, with a decoder that is done at once in place of the models.
PROGRAM = """
import resource, sys
from args_fast.cli import app, batch
from fake_decoder import FakeDecoder
batch.load_pair = lambda *names, **options: (FakeDecoder(slots=64), {})
app(["batch", *sys.argv[1:], "--max-new-tokens", "4", "--json"], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
ALLOWED_MIB = 12


def peak(folder, lines):
    source, output = folder / f"{lines}.in.jsonl", folder / f"{lines}.out.jsonl"
    with open(source, "w") as file:
        for i in range(lines):
            file.write(json.dumps({"prompt": [i, 1, 2], "id": "x" * 200}) + "\n")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, output],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    summary, kib = run.stdout.splitlines()
    assert json.loads(summary)["records"] == lines
    assert json.loads(summary)["errors"] == 0
    return int(kib) / 1024, source.stat().st_size / 2**20


def test_peak_memory_is_the_same_at_a_thousand_and_at_a_hundred_thousand_lines(tmp_path):
    few, _ = peak(tmp_path, 1_000)
    many, read = peak(tmp_path, 100_000)
    assert many - few < ALLOWED_MIB < read
