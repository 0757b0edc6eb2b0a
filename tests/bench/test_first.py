"""The measurement that everybody reads first runs, and its figures are those that it prints."""

from pathlib import Path

import pytest

from args_fast.bench import first


def test_first_prints_the_slowdown(capsys):
    step = first.main("tiny-opt", rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == list(step)
    assert "1.00 x transformers greedy" in lines[0]
    for line, seconds in zip(lines, step.values(), strict=True):
        assert float(line.split(" x transformers")[0].split()[-1]) == pytest.approx(
            seconds / step["transformers greedy"], abs=0.006
        )


def test_first_is_short():
    assert len(Path(first.__file__).read_text().splitlines()) <= 70
