"""Settings for every test: deterministic examples, small tensors, threads that share two cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; workers inherit it

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging

# HYPOTHESIS_PROFILE=thorough draws ten times as many examples, quick a third.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("default", max_examples=60, **QUIET)
settings.register_profile("quick", max_examples=20, **QUIET)
settings.register_profile("thorough", max_examples=600, **QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

logging.set_verbosity_error()
logging.disable_progress_bar()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
