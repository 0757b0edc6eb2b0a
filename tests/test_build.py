"""setup.py: what it builds on which machine, and that one failure costs no more than itself."""

import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils import cpp_extension

SETUP = Path(__file__).parents[1] / "setup.py"


def arguments():
    """Those of setup(), and nothing built."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(SETUP))
    return setup.call_args.kwargs


def extensions():
    return {extension.name: extension for extension in arguments().get("ext_modules", [])}


@pytest.fixture
def cuda_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", toolkit(tmp_path / "toolkit"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def toolkit(root):
    header = root / "include" / "cuda_runtime_api.h"
    header.parent.mkdir(parents=True)
    header.touch()
    return str(root)


def test_a_cuda_machine_builds_both_for_an_a100_and_an_h100(cuda_machine):
    found = extensions()
    assert set(found) == {"args_fast._cpu", "args_fast._cuda"}
    flags = found["args_fast._cuda"].extra_compile_args["nvcc"]
    for arch in ("80", "90"):
        assert f"-gencode=arch=compute_{arch},code=sm_{arch}" in flags
    for extension in found.values():
        assert extension.py_limited_api
        assert "torch_python" not in extension.libraries
        assert all((SETUP.parent / file).is_file() for file in extension.sources)
        assert all((SETUP.parent / file).is_file() for file in extension.depends)


@pytest.mark.parametrize(("flags", "kept"), [(None, False), ("-O1 -g", True)])
def test_debug_information_is_for_those_who_ask(flags, kept, monkeypatch):
    monkeypatch.setenv("CFLAGS", flags) if flags else monkeypatch.delenv("CFLAGS", raising=False)
    assert ("-g0" not in extensions()["args_fast._cpu"].extra_compile_args) == kept


@pytest.mark.parametrize(("name", "folder"), [("_cpu", "csrc/cpu"), ("_cuda", "csrc/cuda")])
def test_every_source_is_built(cuda_machine, name, folder):
    root = SETUP.parent
    files = {
        str(path.relative_to(root))
        for place in (root / folder, root / "csrc")
        for path in place.iterdir()
        if path.is_file()
    }
    extension = extensions()[f"args_fast.{name}"]
    assert {*extension.sources, *extension.depends} == files
    assert len({Path(file).stem for file in extension.sources}) == len(extension.sources)


@pytest.mark.skipif(Path("/usr/local/cuda").exists(), reason="this machine has a CUDA toolkit")
def test_no_toolkit_is_said_and_costs_the_cuda_ops_only(cuda_machine, monkeypatch, capsys):
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert set(extensions()) == {"args_fast._cpu"}
    assert "no CUDA toolkit" in capsys.readouterr().err


def test_a_script_that_starts_nvcc_leads_to_the_toolkit(
    cuda_machine, monkeypatch, tmp_path, capsys
):
    """torch takes the folder two levels above the script, which has no headers."""
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    root = toolkit(tmp_path / "cuda-13.0")
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho '#$ TOP={root}/bin/..' >&2\n")
    script.chmod(0o755)
    (tmp_path / "cuda-13.0" / "bin").mkdir()
    assert set(extensions()) == {"args_fast._cpu", "args_fast._cuda"}
    assert root == cpp_extension.CUDA_HOME
    assert f"toolkit in {root}" in capsys.readouterr().err


def test_what_the_environment_names_comes_first(cuda_machine, monkeypatch, tmp_path):
    root = toolkit(tmp_path / "named")
    monkeypatch.setenv("CUDA_HOME", root)
    extensions()
    assert root == cpp_extension.CUDA_HOME


def test_a_cpu_build_of_torch_is_said_and_costs_the_cuda_ops_only(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert set(extensions()) == {"args_fast._cpu"}
    assert "not a CUDA build" in capsys.readouterr().err


def test_without_torch_the_package_still_installs(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "ext_modules" not in arguments()
    assert "no torch" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["args_fast._cpu", "args_fast._cuda"])
def test_one_library_that_does_not_build_leaves_the_other(cuda_machine, capsys, broken):
    tried, compilers = [], []

    def build(self):
        (extension,) = self.extensions
        tried.append(extension.name)
        compilers.append(self.compiler)
        if extension.name == broken:
            raise RuntimeError("this compiler is broken")

    found = arguments()
    command = object.__new__(found["cmdclass"]["build_ext"])
    command.extensions = found["ext_modules"]
    command.compiler = mock.Mock()
    with mock.patch.object(cpp_extension.BuildExtension, "build_extensions", build):
        command.build_extensions()
    assert tried == ["args_fast._cpu", "args_fast._cuda"]
    assert compilers[0] is not compilers[1]
    assert command.extensions == found["ext_modules"]
    assert f"installing without {broken}: this compiler is broken" in capsys.readouterr().err
