"""The rehearsal of the GPU visits: how one is killed, and what is read of an archive."""

import json
import sys
import tarfile

import pytest

import scripts

gpu_dry_run = scripts.load("scripts/gpu_dry_run.py")

WRITE = """
import json, sys, tarfile, time
from pathlib import Path
archive, name = Path(sys.argv[1]), sys.argv[2]
file = archive.with_name(name)
file.write_text(json.dumps({"cases": {}}))
part = archive.with_name("part")
with tarfile.open(part, "w:gz") as opened:
    opened.add(file, "cpu/" + name)
part.replace(archive)
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("name", "sleep", "seconds", "how"),
    [
        ("slowdown.json", 60, 30, "killed when the first result was in the archive"),
        ("build.log", 60, 3, "killed, without a result in the archive"),
        ("build.log", 0, 30, "ended before it could be killed"),
    ],
)
def test_a_visit_is_killed_once_a_result_is_there(tmp_path, name, sleep, seconds, how):
    archive = tmp_path / "gpu-A.tar.gz"
    command = [sys.executable, "-c", WRITE, str(archive), name, str(sleep)]
    assert gpu_dry_run.killed(command, archive, seconds) == how
    assert list(gpu_dry_run.contents(archive)) == [f"cpu/{name}"]


def test_an_archive_with_half_a_result_is_an_error(tmp_path):
    file, archive = tmp_path / "half.json", tmp_path / "gpu-A.tar.gz"
    file.write_text('{"cases": ')
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(file, file.name)
    with pytest.raises(json.JSONDecodeError):
        gpu_dry_run.contents(archive)
    assert gpu_dry_run.contents(tmp_path / "none.tar.gz") == {}
