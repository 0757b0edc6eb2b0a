"""Model folders with random faults: loading one is an ArgsError, or its tokens are right.

python tests/helpers/fuzz.py FIRST COUNT     cases by number; a fault is printed with its number
"""

import collections
import copy
import functools
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import peft
import torch
import transformers
from encoders import encoder, own_forward
from safetensors.torch import load_file, save_file
from scan import TOLERANCE, deviation
from tiny_models import language_model, reward_model, tokens
from vocabularies import byte_level

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError
from args_fast.models.pretrained import is_fault
from args_fast.rewards import Text

# A language model and a reward: a classifier, or one in another of the usual forms.
PAIRS = (
    ("llama", "llama"),
    ("gpt2", "opt"),
    ("mistral", "qwen2"),
    ("gemma2", "gpt_neox"),
    ("qwen3", "adapter"),
    ("phi3", "v_head"),
    ("olmo2", "value_head.safetensors"),
    ("llama_mqa", "bert"),
)
CONFIG = DecodingConfig(k=4, w=1.5, max_new_tokens=3)
SECONDS = 120  # a case that takes longer hangs
MEMORY = 12 << 30

ODD = (None, True, False, 0, 1, -1, 2, 3, 7, 96, 1000, 10**7, 0.5, 1e-9, 3.7, float("nan"), "")
ODD += ("abc", "61", "eager", [], [1], ["full_attention"], {}, {"a": 1}, [None, "x"])
TYPES = ("llama", "gpt2", "opt", "mistral", "bert", "mamba", "t5", "bloom", "gemma3", "vit", "")


@functools.cache
def pair_folder(number):
    """A pair as save_pretrained leaves it, and the tokens that it gives."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-pair-"))
    lm, form = PAIRS[number]
    language_model(lm).save_pretrained(folder / "lm")
    _save_reward(form, folder / "rm")
    for role in ("lm", "rm"):
        byte_level().save_pretrained(folder / role)
    (result,) = ArgsDecoder.from_pretrained(folder / "lm", folder / "rm").generate(
        tokens(9), CONFIG
    )
    return folder, result.token_ids


def _save_reward(form, folder):
    """A reward model in one of the forms that people have."""
    if form == "bert":
        encoder("bert").save_pretrained(folder)
    elif form == "adapter":
        base = folder.parent / "base"
        reward_model("llama").save_pretrained(base)
        lora = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]}
        adapted = peft.get_peft_model(
            copy.deepcopy(reward_model("llama")), peft.LoraConfig(task_type="SEQ_CLS", **lora)
        )
        torch.manual_seed(5)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.normal_(0, 0.3)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(folder)
    else:
        model = reward_model("llama" if form in ("v_head", "value_head.safetensors") else form)
        model.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        if form == "v_head":
            weights["v_head.summary.weight"] = weights.pop("score.weight")
        elif form == "value_head.safetensors":
            head = {"v_head.summary.weight": weights.pop("score.weight")}
            save_file(head, folder / form, metadata={"format": "pt"})
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def judge(number):
    """(verdict, description) of one case: refused, right, or a fault (wrong, traceback, hangs)."""
    dice = random.Random(number)
    original, expected = pair_folder(dice.randrange(len(PAIRS)))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch, "pair")
        shutil.copytree(original, folder)
        faults = []
        for _ in range(dice.choice((1, 1, 1, 2))):
            role = dice.choice(("lm", "rm"))
            faults.append(f"{role}: {corrupt(folder / role, dice)}")
        # A model that has other numbers, or another tokenizer, may give other tokens: those of its
        # own forward.
        same = not any(
            # An output layer in the file is taken, also where the configuration ties it.
            word in fault
            for word in ("config", "value", "tokenizer", "extra lm_head")
            for fault in faults
        )
        verdict = _decode(folder, expected if same else None)
    return verdict, "; ".join(faults)


@torch.no_grad()
def _decode(folder, expected):
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        decoder = ArgsDecoder.from_pretrained(folder / "lm", folder / "rm", device="cpu")
        (result,) = decoder.generate(tokens(9), CONFIG)
        if decoder.tokenizer is not None:
            decoder.generate("abc cab", CONFIG)
        if expected is not None and result.token_ids != expected:
            return f"wrong: {result.token_ids}, without the fault {expected}"
        (reward,) = decoder._rewards.values()
        own = functools.partial(_of_text, decoder, reward) if isinstance(reward, Text) else None
        error = deviation(
            decoder.language_model,
            own or reward.model,
            tokens(9),
            result,
            CONFIG,
            known=reward.known_ids(),
        )
        return "right" if error <= TOLERANCE else f"wrong: off by {error:.1e}"
    except ArgsError as error:
        return f"refused: {type(error).__name__}: {error}"
    except TimeoutError:
        return "hangs"
    except BaseException as error:
        if not is_fault(error):
            raise
        return "traceback: " + traceback.format_exc()
    finally:
        signal.alarm(0)


def _of_text(decoder, reward, ids):
    """r of a reward that reads text, by its model's own forward on the text of these ids."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    prompt = decoder.tokenizer.decode(tokens(9), **options)
    response = decoder.tokenizer.decode(ids, **options)[len(prompt) :].rstrip("\ufffd")
    return own_forward(reward.model, reward.encoder.tokenizer, prompt + response)


def _hangs(*_):
    raise TimeoutError


# ---- faults --------------------------------------------------------------------------------------


def corrupt(folder, dice):
    """Put one fault into a model's folder; returns what it is."""
    fault = dice.choice((_field, _field, _field, _tensor, _tensor, _tensor, _file, _text_of_file))
    return fault(folder, dice)


def _field(folder, dice):
    """A field of a JSON file changes, goes or comes."""
    names = ("config.json", "config.json", "config.json", "generation_config.json")
    names += ("tokenizer_config.json", "tokenizer.json", "adapter_config.json")
    path = folder / dice.choice([name for name in names if (folder / name).is_file()] or ["none"])
    try:
        content = json.loads(path.read_text())
        holder, key = dice.choice(list(_places(content)))
    except (OSError, ValueError, IndexError):
        return _file(folder, dice)
    before = copy.deepcopy(holder[key])
    action = dice.choice(("change", "change", "nudge", "delete", "add", "model_type"))
    if action == "model_type" and path.name == "config.json" and isinstance(content, dict):
        content["model_type"] = after = dice.choice(TYPES)
        key = "model_type"
    elif action == "delete" and isinstance(holder, dict):
        after = "gone"
        del holder[key]
    elif action == "add" and isinstance(holder, dict):
        key = f"{key}_{dice.choice(('window', 'scale', 'topk', 'x'))}"
        holder[key] = after = dice.choice(ODD)
    elif action == "nudge" and type(before) in (int, float):
        holder[key] = after = dice.choice(
            (before + 1, before - 1, before * 2, before // 2, -before)
        )
    else:
        holder[key] = after = dice.choice(ODD)
    path.write_text(json.dumps(content))
    return f"{path.name} {key}: {str(before)[:40]} -> {str(after)[:40]}"


def _places(content):
    """Every (holder, key) of a JSON value, at any depth; long tables by a few of theirs."""
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in items[:40]:
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _tensor(folder, dice):
    """A weight is missing, renamed, of another shape, or has other numbers."""
    path = dice.choice(sorted(folder.glob("*.safetensors")) or [folder / "none"])
    try:
        weights = load_file(path)
        name = dice.choice(sorted(weights))
    except Exception:
        return _file(folder, dice)
    weight = weights[name]
    fault = dice.choice(("missing", "renamed", "moved", "shape", "dtype", "value", "extra"))
    if fault == "missing":
        del weights[name]
    elif fault == "renamed":
        endings = (".bias", "_old", ".weight.0")
        new = (
            name.replace(dice.choice(("weight", "layers", "0", "model.")), "x")
            if dice.random() < 0.5
            else name + dice.choice(endings)
        )
        weights[new] = weights.pop(name)
        fault += f" to {new}"
    elif fault == "moved":
        other = dice.choice(sorted(weights))
        weights[name], weights[other] = weights[other], weights[name]
        fault = f"value: changed places with {other}"
    elif fault == "shape":
        weights[name] = dice.choice(
            (
                weight[:-1],
                weight.t() if weight.dim() == 2 else weight[None],
                weight.flatten(),
                weight[:0],
            )
        ).contiguous()
        same = weights[name].shape == weight.shape
        fault = "value: transposed" if same else f"shape {tuple(weights[name].shape)}"
    elif fault == "dtype":
        kind = dice.choice((torch.float64, torch.int8, torch.bool, torch.bfloat16, torch.int64))
        weights[name] = weight.to(kind)
        fault = f"value: {kind}"
    elif fault == "value":
        number = dice.choice((float("nan"), float("inf"), 0.0, 1e30, -1e4))
        weight.view(-1)[dice.randrange(weight.numel())] = number
        fault += f" {number}"
    else:
        new = dice.choice(
            (
                "lm_head.weight",
                "score.bias",
                "score.weight",
                "v_head.weight",
                "a.b",
                name.replace("weight", "bias"),
                name.replace(".0.", ".5."),
            )
        )
        fault += f" {new}" if new not in weights else f" value {new}"
        weights[new] = torch.ones(dice.choice(((1,), (1, 32), (61, 32), (32,))))
    # Shared memory is not saved; tied weights come out of load_file apart.
    save_file({k: v.clone() for k, v in weights.items()}, path, metadata={"format": "pt"})
    return f"tensor {name} {fault}"


def _file(folder, dice):
    """A file is missing, empty, cut off, a pointer, or another's."""
    path = dice.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    fault = dice.choice(("missing", "empty", "cut", "bytes", "pointer", "swapped", "added"))
    if fault == "missing":
        path.unlink()
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "cut":
        path.write_bytes(content[: dice.randrange(len(content) + 1)])
    elif fault == "bytes":
        changed = bytearray(content)
        for _ in range(dice.choice((1, 3))):
            if changed:
                # In the head of a file with weights: beyond it are only numbers.
                changed[dice.randrange(min(len(changed), 400))] = dice.randrange(256)
        path.write_bytes(bytes(changed))
        fault = "bytes (value)" if path.suffix == ".safetensors" else fault
        fault = f"{fault} of config" if path.name.startswith("config") else fault
    elif fault == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    elif fault == "swapped":
        other = dice.choice(sorted(folder.parent.glob(f"*/*{path.suffix}")))
        path.write_bytes(other.read_bytes())
        fault = f"config, weights or value of {other.parent.name}"
    else:
        name = dice.choice(
            (
                "adapter_config.json",
                "pytorch_model.bin",
                "chat_template.jinja",
                "model.safetensors.index.json",
                "tokenizer.model",
            )
        )
        (folder / name).write_bytes(dice.choice((b"", b"{}", b'{"a": 1}', b"\x80\x02")))
        fault += f" {name}"
    return f"file {path.name} {fault}"


def _text_of_file(folder, dice):
    """A piece of a text file goes, comes twice or is replaced."""
    paths = [
        path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".jinja", ".txt")
    ]
    if not paths:
        return "config: nothing left to change"
    path = dice.choice(paths)
    text = path.read_text(errors="replace")
    start = dice.randrange(len(text) + 1)
    piece = text[start : start + dice.choice((1, 5, 40))]
    new = dice.choice(("", piece * 2, "null", "{", "é"))
    path.write_text(text[:start] + new + text[start + len(piece) :])
    return f"text of {path.name} (config or value) at {start}: {piece!r} -> {new[:20]!r}"


def main(first, count):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts, kinds = collections.Counter(), collections.Counter()
    for number in range(first, first + count):
        verdict, faults = judge(number)
        kind = verdict.partition(":")[0]
        counts[kind] += 1
        if kind == "refused":
            kinds[verdict.split(":")[1].strip()] += 1
        elif kind != "right":
            print(f"{number}: {faults}\n    {verdict}", flush=True)
        if (number + 1 - first) % 500 == 0:
            print(f"after {number + 1 - first} cases: {dict(counts)}", flush=True)
    print(f"{count} cases: {dict(counts)}; errors: {dict(kinds)}")
    return counts


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
