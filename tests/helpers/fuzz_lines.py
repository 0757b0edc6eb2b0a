"""Files of prompts with random faults: each line is an error record or right tokens, the job ends.

python tests/helpers/fuzz_lines.py FIRST COUNT     cases by number; a fault is printed with it
"""

import collections
import functools
import gzip
import json
import random
import sys
import tempfile
import traceback
import warnings
from dataclasses import fields
from pathlib import Path

import torch
import transformers
from tiny_models import language_model, reward_model
from vocabularies import byte_level

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError
from args_fast.jobs.job import Settings, decode_lines, opened
from args_fast.jobs.layouts import Reading, detect

DEFAULTS = DecodingConfig(k=4, w=1.5, max_new_tokens=3)
OPTIONS = [field.name for field in fields(DecodingConfig)]
ODD = (None, True, 0, 1, -1, 3, 60, 10**7, 0.5, 1e-40, 1e300, float("nan"), "", "abc", "\ud800")
ODD += (["a"], [5, 6], [[]], [None], {}, {"role": "user", "content": "a"}, [{"content": "b"}])
TEXTS = ("abc cab", "A bad day.", "é 你 🙂", "Human: a, b")


def _turns(text, *keys):
    return [dict(zip(keys, ("user", text), strict=True))]


# Layouts: a text to the object of a line.
OBJECTS = {
    "jsonl": lambda text: {"prompt": text, "id": 7, "w": 2, "stop": ["q"], "seed": 3},
    "options": lambda text: {"prompt": text, "temperature": 0.5, "k": 3, "max_new_tokens": 2},
    "ids": lambda text: {"prompt": [5, 6, len(text)], "eos_token_ids": [2], "top_p": 0.9},
    "messages": lambda text: {"messages": _turns(text, "role", "content")},
    "openai": lambda text: {
        "custom_id": "a",
        "method": "POST",
        "body": {"model": "m", "messages": _turns(text, "role", "content"), "max_tokens": 2},
    },
    "hh": lambda text: {"chosen": f"\n\nHuman: {text}\n\nAssistant: a", "rejected": "b"},
    "sharegpt": lambda text: {"conversations": _turns(text, "from", "value")},
}


@functools.cache
def decoder():
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    return ArgsDecoder(language_model(), reward_model(), tokenizer=tokenizer)


def judge(number):
    """(verdict, description): refused, or right with the number of lines that were decoded, or a
    fault (wrong, traceback)."""
    dice = random.Random(number)
    kind = dice.choice(list(OBJECTS))
    lines = [json.dumps(OBJECTS[kind](text)).encode() for text in TEXTS]
    whole = list(lines)
    faults = [_corrupt(lines, dice) for _ in range(dice.choice((1, 2, 4)))]
    if dice.random() < 0.15:
        ending, content = ".json", b"[" + b",".join(lines) + b"]"
    else:
        ending, content = ".jsonl", b"\n".join(lines) + dice.choice((b"\n", b""))
    content, ending, fault = _file(content, ending, dice)
    faults.append(fault)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        source = Path(scratch, "in" + ending)
        source.write_bytes(content)
        layout = detect(OBJECTS[kind]("a"), "prompt")
        verdict = _run(source, whole if ending == ".jsonl" and not fault else [], layout)
    return verdict, f"{kind}{ending}: " + "; ".join(filter(None, faults))


def _run(source, whole, layout):
    settings = Settings(
        "lm", "rm", "float32", DEFAULTS, Reading("auto"), ordered=True, scores=False
    )
    output = source.with_name("out.jsonl")
    try:
        with opened(str(source), str(output), settings) as job:
            is_plain = job.source.is_plain
            found_layout = job.settings.reading.format
            if found_layout != layout:
                whole = []  # the first line that can be read is in another layout: all are read so
            for _ in job.write(decode_lines(decoder(), job.lines(), job.settings)):
                pass
            expected = job.input.lines
        records = [json.loads(line) for line in output.read_bytes().splitlines()]
    except ArgsError as error:
        return f"refused: {type(error).__name__}: {error}"
    except Exception:
        return "traceback: " + traceback.format_exc()
    if len(records) != expected:
        return f"wrong: {len(records)} records of {expected} lines"
    lines = dict(enumerate(source.read_bytes().split(b"\n"), 1)) if is_plain else {}
    for record in records:
        line = lines.get(record["line"], b"").strip()
        if "error" in record:
            if line in whole and "bad" not in line.decode():
                return f"wrong: line {record['line']} is as it was: {record}"
            continue
        found = [sample["token_ids"] for sample in record.get("samples", [record])]
        if not line or found_layout not in ("jsonl", "messages"):
            continue
        wanted = _alone(json.loads(line.decode("utf-8-sig")))
        if wanted not in (None, found):
            return f"wrong: line {record['line']} gives {found}, alone {wanted}"
    return f"right: {sum('error' not in record for record in records)}"


def _alone(content):
    """The tokens that ``generate`` gives for a line of our own layout, or of messages; None of
    others, and where it is refused."""
    prompt = content.get("prompt", content.get("messages"))
    if prompt is None:
        return None
    options = {name: content[name] for name in OPTIONS if name in content}
    try:
        config = DecodingConfig(**{"k": 4, "w": 1.5, "max_new_tokens": 3} | options)
        return [result.token_ids for result in decoder().generate([prompt], config)]
    except ArgsError:
        return None


# ---- faults --------------------------------------------------------------------------------------


def _corrupt(lines, dice):
    """Put one fault into one line."""
    at = dice.randrange(len(lines))
    try:
        content = json.loads(lines[at])
    except ValueError:
        content = None
    fault = dice.choice(
        ("value", "value", "value", "delete", "rename", "add", "bytes", "cut", "copy")
    )
    if fault in ("bytes", "cut", "copy") or not isinstance(content, dict) or not content:
        raw = bytearray(lines[at])
        start = dice.randrange(len(raw) + 1)
        if fault == "cut":
            del raw[start:]
        elif fault == "copy":
            raw[start:start] = raw[:start]
        else:
            raw[start : start + 1] = bytes([dice.randrange(256)])
        lines[at] = bytes(raw).replace(b"\n", b" ")
        return f"line {at + 1}: {fault} at {start}"
    holder = content
    while dice.random() < 0.5 and (inner := [v for v in holder.values() if isinstance(v, dict)]):
        holder = dice.choice(inner)
    key = dice.choice(list(holder) or ["prompt"])
    if fault == "value":
        holder[key] = dice.choice(ODD)
    elif fault == "delete":
        holder.pop(key, None)
    elif fault == "rename":
        holder[key + "s"] = holder.pop(key, None)
    else:
        key = dice.choice((*OPTIONS, "prompt", "messages", "id", "n", "max_tokens", "tools"))
        holder[key] = dice.choice(ODD)
    lines[at] = json.dumps(content).encode()
    return f"line {at + 1}: {fault} {key}: {str(holder.get(key))[:30]!r}"


def _file(content, ending, dice):
    """(bytes, ending, fault) after what may befall a whole file; mostly nothing does."""
    fault = dice.choice((*[""] * 8, "gzip", "cut gzip", "utf-16", "latin-1", "bom", "cr", "crlf"))
    if fault in ("gzip", "cut gzip"):
        content, ending = gzip.compress(content), ending + ".gz"
        content = content[: -dice.randrange(1, 20)] if fault == "cut gzip" else content
    elif fault in ("utf-16", "latin-1"):
        content = content.decode(errors="replace").encode(fault, errors="replace")
    elif fault == "bom":
        content = b"\xef\xbb\xbf" + content
    elif fault:
        content = content.replace(b"\n", b"\r" if fault == "cr" else b"\r\n")
    return content, ending, fault


def main(first, count):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts, decoded = collections.Counter(), 0
    for number in range(first, first + count):
        verdict, faults = judge(number)
        kind, _, more = verdict.partition(":")
        counts[kind] += 1
        decoded += int(more) if kind == "right" else 0
        if kind not in ("right", "refused"):
            print(f"{number}: {faults}\n    {verdict}", flush=True)
        if (number + 1 - first) % 500 == 0:
            print(f"after {number + 1 - first} files: {dict(counts)}", flush=True)
    print(f"{count} files of {len(TEXTS)} lines: {dict(counts)}; {decoded} lines decoded")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
