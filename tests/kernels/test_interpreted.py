"""Runs every module of interpreted/ in Triton's interpreter. One of them by hand:
TRITON_INTERPRET=1 pytest tests/kernels/interpreted/test_commit.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = sorted((HERE / "interpreted").glob("test_*.py"))


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on: they run in place"
)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem.removeprefix("test_"))
def test_kernel_agrees_with_its_oracle_in_the_interpreter(module):
    # Triton's interpreter works on numpy arrays; torch's own threads would only be in its way.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", module]
    run = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
