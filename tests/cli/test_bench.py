"""``args-fast bench``: which cases it measures, where they go, and what it says."""

from importlib import util

import pytest

from args_fast.bench import baselines, results, runner
from args_fast.cli import bench


@pytest.fixture
def begun(monkeypatch):
    """The cases that would be measured, in place of measuring them."""
    seen = []

    def run(cases, file, device, **options):
        seen.append((cases, file, device, options))
        return []

    monkeypatch.setattr(runner, "run", run)
    return seen


def test_without_options_a_small_pair_is_measured(cli, begun, tmp_path):
    assert cli("bench", "--device", "cpu", "--results", tmp_path).exit_code == 0
    ((cases, file, device, options),) = begun
    assert [(case.lm, case.rm, case.k) for case in cases] == [("opt-125m", "opt-125m", 10)]
    assert device.type == "cpu"
    assert file.path.is_relative_to(tmp_path)
    assert options["budget"] is None
    assert options["again"] is False


def test_options_name_one_case(cli, begun, tmp_path):
    arguments = ["--lm", "llama-7b", "--rm", "llama-7b", "--k", 20, "--prompt", 64, "--batch", 2]
    arguments += ["--dtype", "float16", "--new-tokens", 5, "--results", tmp_path]
    assert cli("bench", *arguments).exit_code == 0
    ((case,), *_) = begun[0]
    assert (case.lm, case.rm, case.k, case.prompt) == ("llama-7b", "llama-7b", 20, 64)
    assert (case.batch, case.dtype, case.new_tokens) == (2, "float16", 5)


def test_options_change_the_cases_of_a_set(cli, begun, tmp_path):
    cli(
        "bench", "--set", "k", "--lm", "opt-6.7b", "--method", baselines.ARGS, "--results", tmp_path
    )
    (cases, *_) = begun[0]
    assert [case.k for case in cases] == [2, 5, 10, 20, 40]
    assert {(case.lm, case.methods) for case in cases} == {("opt-6.7b", (baselines.ARGS,))}


def test_results_go_where_out_says_too(cli, begun, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    cli("bench", "--results", tmp_path / "kept", "--dry-run", "--budget", 100)
    (_, file, _, options) = begun[0]
    assert file.copy_to == tmp_path / "out"
    assert file.dry_run
    assert 0 < options["budget"] < 100  # what the start took is off it


def test_outside_a_checkout_results_go_to_the_current_folder(cli, begun, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "site-packages/bench/results.py"))
    monkeypatch.chdir(tmp_path)
    shown = cli("bench")
    assert shown.exit_code == 0
    assert "bench-results" in shown.stderr
    assert begun[0][1].path.is_relative_to(tmp_path / "bench-results")


def test_in_a_checkout_results_are_kept_in_it():
    folder, in_checkout = results.default_folder()
    assert in_checkout
    assert folder.parts[-2:] == ("bench", "results")


def test_what_is_left_is_told(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(
        runner, "run", lambda cases, *rest, **options: [runner.Skipped(cases[0], "no time")]
    )
    shown = cli("bench", "--set", "headline", "--results", tmp_path)
    assert shown.exit_code == 0
    assert "1 of 8 cases are left: run the same command again" in shown.stderr


def test_a_lost_device_ends_the_command_with_the_way_on(cli, monkeypatch, tmp_path):
    def lost(*arguments, **options):
        raise runner.DeviceLostError("the device answers no more. Run the same command again")

    monkeypatch.setattr(runner, "run", lost)
    shown = cli("bench", "--results", tmp_path)
    assert shown.exit_code == 2
    assert "Run the same command again" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm", "opt-9b"], "no model 'opt-9b'"),
        (["--method", "magic"], "no method 'magic'"),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(cli, begun, arguments, message):
    shown = cli("bench", *arguments)
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert not begun


def test_a_report_without_matplotlib_says_how_to_get_it(cli, monkeypatch, tmp_path):
    found = util.find_spec
    monkeypatch.setattr(
        bench, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    shown = cli("bench", "report", "--results", tmp_path)
    assert shown.exit_code == 2
    assert "pip install 'args-fast[bench]'" in shown.stderr


def test_a_report_without_results_says_what_to_do(cli, tmp_path):
    pytest.importorskip("matplotlib")
    shown = cli("bench", "report", "--results", tmp_path / "results")
    assert shown.exit_code == 2
    assert "args-fast bench" in shown.stderr


def test_the_help_has_examples(cli):
    shown = " ".join(cli("bench", "--help").stdout.split())
    assert "--set headline --budget 540" in shown
    assert "--copy-to" in shown
    assert "args-fast bench report" in " ".join(cli("bench", "report", "--help").stdout.split())
