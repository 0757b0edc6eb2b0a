"""A device for each model."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

WORKER = Path(__file__).parents[1] / "helpers" / "two_devices.py"


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices without data",
)
def test_what_goes_from_one_model_to_the_other_is_moved():
    run = subprocess.run([sys.executable, WORKER], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[:2000]
    assert "all moved" in run.stdout
