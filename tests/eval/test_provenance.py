"""A result names the content of its models, not only where they lay."""

import shutil

from args_fast.eval.provenance import commit, environment, model_hash
from args_fast.tiny_pair import LM, RM


def test_the_hash_is_of_the_content(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(LM, copy)
    assert model_hash(str(copy)) == model_hash(str(LM))
    assert model_hash(str(RM)) != model_hash(str(LM))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_hash(str(copy)) != model_hash(str(LM))


def test_a_model_that_is_nowhere_has_no_hash():
    assert model_hash("no/such-model-anywhere") is None


def test_environment_names_versions_and_the_machine():
    made = environment()
    assert {"args-fast", "python", "torch", "transformers"} <= set(made["versions"])
    assert made["processor"]
    assert made["commit"] == commit()
