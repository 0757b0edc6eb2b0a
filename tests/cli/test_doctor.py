"""``args-fast doctor``: what is here, what runs, what is missing."""

import pytest
import torch
import transformers

from args_fast import tiny_pair
from args_fast.models import flash
from args_fast.ops import backends, cpp


def test_json_holds_versions_devices_and_ops(cli_json):
    facts = cli_json("doctor")
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["transformers"] == transformers.__version__
    assert {"args-fast", "python", "triton", "flash-attn"} <= set(facts["versions"])
    assert facts["devices"][0]["device"] == "cpu"
    assert len(facts["devices"]) == 1 + torch.cuda.device_count()
    assert facts["embedded_pair"] is True
    for device, ops in facts["ops"].items():
        for op, entry in ops.items():
            assert entry["backends"] == list(backends.TABLE[device][op])
            assert entry["chosen"] == entry["backends"][0]


def test_the_same_is_shown_to_people(cli):
    result = cli("doctor")
    assert result.exit_code == 0
    assert torch.__version__ in result.stdout
    for word in ("Versions", "Devices", "Ops", "Models", "branch_attention", "the first one runs"):
        assert word in result.stdout
    assert str(tiny_pair.LM.parent) in "".join(result.stdout.split())


def test_a_forced_backend_is_what_runs(cli, cli_json, monkeypatch):
    monkeypatch.setenv("ARGS_FAST_BACKEND", "torch")
    facts = cli_json("doctor")
    assert facts["forced_backend"] == "torch"
    assert {entry["chosen"] for entry in facts["ops"]["cpu"].values()} == {"torch"}
    assert "ARGS_FAST_BACKEND=torch is set" in cli("doctor").stdout


def test_a_forced_backend_that_is_not_there_is_said_so(cli, cli_json, monkeypatch):
    monkeypatch.setenv("ARGS_FAST_BACKEND", "abacus")
    assert {entry["chosen"] for entry in cli_json("doctor")["ops"]["cpu"].values()} == {None}
    result = cli("doctor")
    assert result.exit_code == 0
    assert "no abacus, only" in result.stdout


def test_ops_that_are_not_built_are_missing_with_the_way_to_get_them(cli, cli_json, monkeypatch):
    monkeypatch.setattr(cpp, "status", lambda: "not built: reinstall with a compiler")
    assert cli_json("doctor")["missing"]["C++ ops"] == "not built: reinstall with a compiler"
    assert "reinstall with a compiler" in cli("doctor").stdout
    monkeypatch.setattr(cpp, "status", lambda: "built")
    assert "C++ ops" not in cli_json("doctor")["missing"]


def test_it_says_whether_flash_attn_is_used(cli, cli_json, monkeypatch):
    monkeypatch.setattr(flash, "status", lambda: "installed, but for another torch")
    facts = cli_json("doctor")
    assert facts["flash_attn"] == facts["missing"]["flash-attn"] == flash.status()
    assert "attention torch's" in " ".join(cli("doctor").stdout.split())
    monkeypatch.setattr(flash, "status", lambda: "used")
    assert "flash-attn" not in cli_json("doctor")["missing"]
    assert "flash-attn on CUDA in 16 bits" in cli("doctor").stdout


def test_an_embedded_pair_that_is_not_there_is_missing(cli, cli_json, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_pair, "LM", tmp_path / "lm")
    facts = cli_json("doctor")
    assert facts["embedded_pair"] is False
    assert "train.py" in facts["missing"]["embedded pair"]
    assert "not there" in cli("doctor").stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_a_cpu_build_of_torch_is_named(cli_json):
    assert "CPU build" in cli_json("doctor")["missing"]["CUDA"]


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="the Triton ops are here")
def test_triton_ops_that_do_not_run_here_are_missing_with_the_reason(cli_json):
    assert "CUDA" in cli_json("doctor")["missing"]["Triton ops"]
