"""``args-fast convert``: the same weights in safetensors, and nothing that a pickle could do."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level

from args_fast import ArgsDecoder, DecodingConfig

CONFIG = DecodingConfig(k=7, max_new_tokens=6, eos_token_ids=[])


@pytest.fixture
def old(tmp_path):
    """A reward model as it was saved in 2023."""
    return pickled(reward_model("opt"), tmp_path / "old")


def pickled(model, folder, shards=1):
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    weights = model.state_dict()
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return folder
    names = [f"pytorch_model-0000{i + 1}-of-0000{shards}.bin" for i in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(weights)}
    for name in names:
        torch.save({k: v for k, v in weights.items() if where[k] == name}, folder / name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("role", ["lm", "rm"])
def test_a_converted_model_gives_the_same_tokens(cli, tmp_path, role, shards):
    models = {"lm": language_model("gpt2"), "rm": reward_model("opt")}  # gpt2's head is tied
    for name, model in models.items():
        pickled(model, tmp_path / name, shards)
        done = cli("convert", tmp_path / name, tmp_path / "new" / name)
        assert done.exit_code == 0, done.stderr
        assert str(tmp_path / "new" / name) in " ".join(done.stderr.split("\n"))
    (expected,) = ArgsDecoder(*models.values()).generate(tokens(9), CONFIG)
    folders = [tmp_path / "new" / name for name in models]
    loaded = ArgsDecoder.from_pretrained(*folders)
    assert loaded.generate(tokens(9), CONFIG)[0].token_ids == expected.token_ids
    assert loaded.tokenizer is not None
    assert not any(file.suffix == ".bin" for folder in folders for file in folder.iterdir())


def test_every_tensor_is_converted(cli, old, tmp_path):
    state = reward_model("opt").state_dict()
    torch.save({"state_dict": state | {"extra": torch.arange(3)}}, old / "pytorch_model.bin")
    assert cli("convert", old, tmp_path / "new").exit_code == 0
    converted = load_file(tmp_path / "new" / "model.safetensors")
    assert set(converted) == {*state, "extra"}
    assert all(torch.equal(converted[key], value) for key, value in state.items())


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/args-fast-evil", "w"))


def refused(result, *words):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert all(word in " ".join(result.stderr.split()) for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_code_in_a_pickle_is_not_run(cli, old, tmp_path):
    torch.save({"weight": Evil()}, old / "pytorch_model.bin")
    refused(cli("convert", old, tmp_path / "new"), str(old / "pytorch_model.bin"), "running code")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"not a checkpoint", "damaged"),
    ],
)
def test_a_damaged_file_is_named(cli, old, tmp_path, content, words):
    (old / "pytorch_model.bin").write_bytes(content)
    refused(cli("convert", old, tmp_path / "new"), str(old / "pytorch_model.bin"), words)


@pytest.mark.parametrize("content", [{"weight": 3}, [torch.ones(2)], torch.ones(2)])
def test_a_file_that_is_not_a_table_of_weights(cli, old, tmp_path, content):
    torch.save(content, old / "pytorch_model.bin")
    refused(cli("convert", old, tmp_path / "new"), "not a table of weights", "state_dict")


def test_there_must_be_something_to_convert_and_room_for_it(cli, old, tmp_path):
    refused(cli("convert", tmp_path / "none", tmp_path / "new"), "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(cli("convert", tmp_path / "empty", tmp_path / "new"), "nothing to convert")
    reward_model("opt").save_pretrained(tmp_path / "safe")
    refused(cli("convert", tmp_path / "safe", tmp_path / "new"), "safetensors already")
    refused(cli("convert", old, old), "not an empty folder")
    shard = (
        pickled(reward_model("opt"), tmp_path / "shards", 2) / "pytorch_model-00002-of-00002.bin"
    )
    shard.unlink()
    refused(cli("convert", tmp_path / "shards", tmp_path / "new"), str(shard), "is missing")


def test_a_conversion_that_fails_leaves_nothing(cli, tmp_path):
    folder = pickled(reward_model("opt"), tmp_path / "old", 2)
    (folder / "pytorch_model-00002-of-00002.bin").write_bytes(b"damaged")
    refused(cli("convert", folder, tmp_path / "new"), "00002-of-00002.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
