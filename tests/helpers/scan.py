"""What becomes of every architecture in the engine: right, refused with an ArgsError, or a fault.

python tests/helpers/scan.py            the full scan; compares with tests/models/scan.json
python tests/helpers/scan.py --write    the same, and writes scan.json and docs/models.md
"""

import collections
import functools
import json
import logging
import sys
import time
from pathlib import Path

import architectures
import oracle
import torch
import transformers

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ArgsError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "models" / "scan.json"
PAGE = ROOT / "docs" / "models.md"
LENGTHS = ((20, False), (110, False), (140, False), (20, True), (110, True))
PROMPTS = (150, 1, 19, 21, 64, 251)  # tokens; the last ends at the last position
TOLERANCE = 2e-3
WORST = ("traceback", "wrong", "refused", "right", "not built")

# A refusal in a few words, by what its message says.
REASONS = {
    "recurrent state": "recurrent state",
    "does not support transformers' attention interface": "no attention interface",
    "have different shapes": "keys and values of several shapes",
    "more than once": "layers that run more than once",
    "keep a state of another kind": "layers without attention",
    "is an encoder-decoder": "encoder-decoder",
    "is a bidirectional encoder": "it reads text in both directions",
    "mask of its own": "an attention mask of its own",
    "is not causal": "not causal",
    "does not pass to its attention": "a window that its attention is not given",
    "sliding window": "a kind of layer that the engine does not know",
    "does not give a hidden state": "a forward pass of another kind",
    "does not run": "a forward pass of another kind",
    "branch from a shared prefix": "the proof fails",
    "asked for the engine's attention": "layers that do not follow its configuration",
    "no head over the vocabulary": "no head over the vocabulary",
    "beyond that length": "long texts",
    "for a text of": "a reward that is more than its head",
    "has no head under a usual name": "no head under a usual name",
    "the head (": "a head that does not apply to a hidden state",
    "can choose among": "a vocabulary of another size",
}


@functools.cache
def partner(kind):
    """A llama of the other kind."""
    other = "classification" if kind == "causal" else "causal"
    return architectures.build(other, "llama", 100)


@torch.no_grad()
def judge(kind, name, length, *, unset=False, prompts=PROMPTS, steps=5):
    """(verdict, reason): decode with an architecture, and recompute every number of every token
    from whole texts."""
    try:
        model = architectures.build(kind, name, length, unset=unset)
    except architectures.CannotBuildError as error:
        return "not built", str(error)
    lm, rm = (model, partner(kind)) if kind == "causal" else (partner(kind), model)
    config = DecodingConfig(k=4, w=1.5, max_new_tokens=steps, eos_token_ids=[])
    late = ""
    try:
        decoder = ArgsDecoder(lm, rm)
        for seed, size in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed)
            prompt = torch.randint(3, architectures.VOCABULARY, (size,), generator=generator)
            try:
                (result,) = decoder.generate(prompt.tolist(), config)
            except ArgsError as error:
                late = late or f"prompts of {size} tokens: {_reason(error)}"
                continue
            error = deviation(lm, rm, prompt.tolist(), result, config)
            if not error <= TOLERANCE:
                return "wrong", f"{size} tokens: off by {error:.1e}"
    except ArgsError as error:
        return "refused", _reason(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"[:200]
    return "right", late


def deviation(lm, rm, prompt, result, config, known=None):
    """The largest error of any logprob, reward or choice, by the models' own forwards; relative,
    of numbers above 1.

    Args:
        lm, rm: the models; ``rm`` may be a function of ids.
        prompt: ids.
        result: the Generation.
        config: its options.
        known: [V] bool, which ids may be candidates; None for all.
    """
    worst, text = 0.0, list(prompt)
    for token, logprob, reward in zip(
        result.token_ids, result.logprobs, result.rewards, strict=True
    ):
        own = lm(torch.tensor([text])).logits[0, -1].double().log_softmax(-1)
        likeliest = own.sort(descending=True, stable=True).indices.tolist()
        if known is not None:
            likeliest = [v for v in likeliest if v < len(known) and known[v]]
        last, following = own[likeliest[config.k - 1]].item(), own[likeliest[config.k]].item()
        # Of tokens that are as likely but for rounding any may be a candidate.
        sure = [v for v in likeliest[: config.k] if own[v] > following + 1e-4]
        rewards = {v: oracle.reward(rm, [*text, v]) for v in {*sure, token}}
        score = logprob + config.w * reward
        errors = [
            logprob - own[token].item(),
            reward - rewards[token],
            max(0.0, last - own[token].item()),  # it was a candidate
            *(max(0.0, own[v].item() + config.w * rewards[v] - score) for v in sure),  # the best
        ]
        size = max(1.0, abs(logprob), *(abs(config.w * r) for r in rewards.values()))
        # NaN is the largest of errors.
        worst = max(worst, *(abs(e) / size if e == e else float("inf") for e in errors))
        text.append(token)
    return worst


def _reason(error):
    said = str(error)
    reason = next((words for key, words in REASONS.items() if key in said), None)
    return reason or f"{type(error).__name__}: {said[:100]}"


def scan(kinds=tuple(architectures.KINDS), lengths=LENGTHS):
    """{kind: {name: [verdict, reason]}}: the worst verdict of all lengths, with its reason."""
    verdicts = {kind: {} for kind in kinds}
    for kind in kinds:
        for name in architectures.names(kind):
            began = time.perf_counter()
            results = [judge(kind, name, n, unset=unset) for n, unset in lengths]
            verdict, reason = min(results, key=lambda r: WORST.index(r[0]))
            # Refused at one length, right at another: refused, and the reason says where.
            if {r[0] for r in results} >= {"right", "refused"}:
                reason = f"in some configurations: {reason}"
                verdict = "right"
            verdicts[kind][name] = [verdict, reason]
            seconds = time.perf_counter() - began
            print(f"{kind:15}{name:32}{verdict:10} {seconds:5.1f} s  {reason}", flush=True)
    return verdicts


def page(data):
    """docs/models.md."""
    lines = [
        "# Models",
        "",
        "Every causal and every sequence-classification architecture that transformers "
        f"{data['transformers']} can build tiny was decoded with prompts of up to 251 tokens, with "
        "every window, chunk, top-k and threshold of its configuration below that, and each number "
        "of each token was recomputed from whole texts by the model's own forward pass. *Right* "
        f"means equal to {TOLERANCE}; *refused* means an error at load that names the reason. None "
        "was wrong. An architecture that is not listed is proved at load like all others.",
        "",
        "`name+variant` is an architecture with a configuration that its defaults do not have. "
        "Refused models can still be decoded with `args_fast.reference.decode`, slowly. Reward "
        "models were given as objects, without a tokenizer; most of those that are refused can be "
        "used as `rewards.Text(model, tokenizer)`, which runs their own forward pass, and which "
        "encoders are taken as by path.",
        "",
        "This page is written by `python tests/helpers/scan.py --write`.",
    ]
    titles = {"causal": "Language models", "classification": "Reward models"}
    for kind, title in titles.items():
        verdicts = data[kind]
        right = [(name, reason) for name, (v, reason) in verdicts.items() if v == "right"]
        lines += ["", f"## {title}", "", f"Right ({len(right)}): "]
        lines[-1] += ", ".join(f"`{name}`" for name, _ in right) + "."
        some = [f"`{name}` ({reason})" for name, reason in right if reason]
        if some:
            lines += ["", "Of these, with an error for a part: " + "; ".join(some) + "."]
        refused = collections.defaultdict(list)
        for name, (verdict, reason) in verdicts.items():
            if verdict == "refused":
                refused[reason].append(name)
        lines += [
            "",
            f"| refused ({sum(map(len, refused.values()))}) | because of |",
            "| --- | --- |",
        ]
        for reason, named in sorted(refused.items(), key=lambda item: -len(item[1])):
            lines.append(f"| {', '.join(f'`{name}`' for name in named)} | {reason} |")
        skipped = [name for name, (v, _) in verdicts.items() if v == "not built"]
        lines += ["", f"Not built at this size: {', '.join(f'`{name}`' for name in skipped)}."]
    return "\n".join(lines) + "\n"


def main():
    torch.set_num_threads(1)
    logging.disable()
    transformers.logging.set_verbosity_error()
    verdicts = scan()
    for kind, found in verdicts.items():
        print(kind, dict(collections.Counter(verdict for verdict, _ in found.values())))
    if "--write" in sys.argv[1:]:
        data = {"transformers": transformers.__version__, **verdicts}
        FILE.write_text(json.dumps(data, indent=0) + "\n")
        PAGE.write_text(page(data))
    elif verdicts != {kind: json.loads(FILE.read_text())[kind] for kind in verdicts}:
        sys.exit("this is not what scan.json says")


if __name__ == "__main__":
    main()
