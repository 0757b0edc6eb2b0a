"""Proof at load: the engine's way is compared with the model's own before any token is decoded.

It costs a few tokens of work and covers every architecture that is new: whatever a model
does that the engine does not know of shows as a disagreement, and becomes an error, not wrong
tokens. It is repeated on both sides of each length from which on a model may do something else.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from args_fast.errors import NonFiniteError, ProofError, RewardHeadError
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches
from args_fast.models.checkpoint import broken_weights
from args_fast.models.forward import own_outputs, own_reward

BRANCHES = 3
SHORT = 5  # tokens of a prompt that shows what does not depend on length
STEPS = 2  # tokens that are decoded

# Largest relative error ||a - b|| / ||b|| that rounding explains.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# Largest error of a reward, or of the largest one where they are above 1.
REWARD_TOLERANCE = TOLERANCE | {torch.float64: 1e-4, torch.float32: 1e-4}

Rewards = Callable[[list[list[int]]], list[float]]


def prove(backbone: Backbone, *, logits: bool, branches: int = BRANCHES) -> None:
    """Prefill twice, branch, commit, branch again; against the model's own pass over whole texts.
    Where the fused layers run, and the modules for passes of more rows, both are proved. Fused
    layers that disagree are dropped, and the model's modules are proved.

    Args:
        backbone: the model to prove.
        logits: compare the model's logits (a language model) or its hidden states (a reward model).
        branches: rows of the tail.

    Raises:
        ProofError: they disagree.
        NonFiniteError: the model's own outputs are NaN.
    """
    name = f"the {backbone.role} ({type(backbone.model).__name__})"
    if (reason := backbone.refusal) is not None:
        warnings.warn(
            f"fused_layers=True is asked for, and {name} runs through its modules: {reason}.",
            stacklevel=2,
        )
    disagree = False
    if backbone.fused_layers() is not None:
        try:
            _prove(backbone, logits, branches)
        except ProofError:
            backbone.drop_fused_layers()
            disagree = True
        if not disagree and backbone.most_fused_rows == math.inf:
            return
    with backbone.through_modules():
        _prove(backbone, logits, branches)
    if disagree:
        warnings.warn(
            f"fused_layers is not used for {name}: what it gives is not what the model gives. The "
            "model's modules are right, and slower; please report the model's name.",
            stacklevel=2,
        )


def _prove(backbone: Backbone, logits: bool, branches: int) -> None:
    for tokens in _lengths(backbone):
        ids = _ids(backbone, tokens + STEPS, branches)
        pages = list(range(1, 1 + pages_for(tokens + STEPS)))
        # Made outside inference mode as the engine's own is: a graph tells the two kinds apart.
        cache = PagedCache(backbone.layout, len(pages))
        prompt, steps = [row[0] for row in ids[:tokens]], ids[tokens:]
        with torch.inference_mode():
            rows = _branch_twice(backbone, prompt, steps, cache, pages, logits)
            recompute = _every_branch if tokens <= SHORT else _branches_taken
            for branched, whole in recompute(backbone, prompt, steps, rows, logits):
                _compare(backbone, branched, whole, tokens)


def prove_language_model(lm: Backbone, compile_mode: str | None, *, looks_ahead: bool) -> None:
    """Prove what the engine will run: the module path, and what torch.compile makes of it."""
    prove(lm, logits=True)
    if compile_mode is None:
        return
    lm.compile(compile_mode)
    # Again, as compiled: a compiler can be wrong too. These are the graphs that a single prompt
    # will need, so none is made for this alone.
    prove(lm, logits=True, branches=1)
    if looks_ahead:
        prove(lm, logits=True)


def prove_reward(
    backbone: Backbone, rewards_of: Rewards, fold: Mapping[int, float] | None = None
) -> None:
    """Compare rewards as the engine gives them with what the reward model's own forward returns for
    each text alone.

    Args:
        backbone: the reward model.
        rewards_of: gives the engine's rewards of several texts (lists of ids).
        fold: the weight of each output of a head with several; None for the only one.

    Raises:
        RewardHeadError: they differ; the message says how.
    """
    longest = max(_lengths(backbone), default=0)
    texts = [
        [row[0] for row in _ids(backbone, tokens, 1, seed=tokens)]
        for tokens in dict.fromkeys((1, 2, 3, 4, SHORT, longest))
        if 1 <= tokens <= backbone.max_length
    ]
    with torch.inference_mode():
        engine = torch.tensor(rewards_of(texts), dtype=torch.float64, device="cpu")
        with backbone.own_forward():
            own = torch.stack([own_reward(backbone.model, text, fold) for text in texts]).double()
        own = own.cpu()
    allowed = REWARD_TOLERANCE[backbone.layout.dtype] * max(1.0, own.abs().max().item())
    worst = int((engine - own).abs().nan_to_num(torch.inf).argmax())
    if (engine - own)[worst].abs() <= allowed:
        return
    _refuse_nan(backbone, "rewards", *(not x.isfinite().all() for x in (own, engine)))
    raise RewardHeadError(
        f"the reward model's forward ({type(backbone.model).__name__}) "
        f"{_difference(engine, own, allowed)}: for a text of {len(texts[worst])} tokens the engine "
        f"gives {engine[worst]:.4g}, the model {own[worst]:.4g}. The engine does not compute that; "
        "use rewards.Text(model, tokenizer), which runs the model's own forward, or a model whose "
        "reward is its head at the last token."
    )


def _lengths(backbone: Backbone) -> list[int]:
    """Tokens of the prompts: short, and beyond each threshold. One that the context does not hold
    proves nothing, as nothing can be decoded there either."""
    longest = int(min(backbone.max_length, 1 << 30)) - STEPS
    lengths = [SHORT, *(t + 3 for t in backbone.thresholds if SHORT < t + 3 <= longest + STEPS)]
    return sorted({min(tokens, longest) for tokens in lengths if longest >= 1})


def _ids(backbone: Backbone, tokens: int, rows: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(backbone.vocabulary, (tokens, rows), generator=generator).tolist()


def _branch_twice(
    backbone: Backbone,
    prompt: list[int],
    steps: list[list[int]],
    cache: PagedCache,
    pages: list[int],
    logits: bool,
) -> list[Tensor]:
    """The engine's output [branches, ...] for the candidates of each step."""
    layout, device, branches = backbone.layout, backbone.device, len(steps[0])
    # In two pieces, as prompts are that begin alike: after a prefix another attention serves.
    half = len(prompt) // 2
    backbone.prefill(cache, prompt[:half], pages)
    backbone.prefill(cache, prompt[half:], pages, half)
    rows = (layout.layers, 1, branches, layout.kv_heads, layout.head_size)
    k, v = (torch.zeros(rows, dtype=layout.dtype, device=device) for _ in range(2))
    table = torch.tensor([pages], dtype=torch.int32, device=device)
    lengths = torch.tensor([len(prompt)], dtype=torch.int32, device=device)
    tail = Branches(cache, table, lengths, k, v)
    run = backbone.logits if logits else backbone.hidden
    outputs = []
    for candidates in steps:
        out = run(torch.tensor([candidates], device=device), tail.positions(), tail)[0]
        outputs.append(out.clone())  # a compiled pass may use its memory again
        tail.commit(torch.tensor([_taken(branches)], device=device))
    return outputs


def _taken(branches: int) -> int:
    """Not the first where there are others, so that a commit of the wrong row shows."""
    return min(1, branches - 1)


def _every_branch(
    backbone: Backbone, prompt: list[int], steps: list[list[int]], rows: list[Tensor], logits: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of all candidates, and the model's own output for each in a text of its own."""
    text = prompt
    for candidates, branched in zip(steps, rows, strict=True):
        texts = torch.tensor([[*text, v] for v in candidates], device=backbone.device)
        with backbone.own_forward():
            yield branched, own_outputs(backbone.model, texts, logits=logits)[:, -1]
        text = [*text, candidates[_taken(len(candidates))]]


def _branches_taken(
    backbone: Backbone, prompt: list[int], steps: list[list[int]], rows: list[Tensor], logits: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that were committed, and the model's own outputs there in one pass over the text:
    enough of a long text, where every candidate alone would cost a pass."""
    taken = _taken(len(steps[0]))
    text = torch.tensor([[*prompt, *(step[taken] for step in steps)]], device=backbone.device)
    with backbone.own_forward():
        whole = own_outputs(backbone.model, text, logits=logits)[0, -len(steps) :]
    yield torch.stack([row[taken] for row in rows]), whole


def _compare(backbone: Backbone, branched: Tensor, recomputed: Tensor, tokens: int) -> None:
    a, b = branched.float(), recomputed.float()
    error = ((a - b).norm() / b.norm()).item()
    allowed = TOLERANCE[recomputed.dtype]
    if error <= allowed:
        return
    _refuse_nan(backbone, "outputs", *(bool(x.isnan().any()) for x in (b, a)))
    raise ProofError(
        f"the {backbone.role} ({type(backbone.model).__name__}) gives other outputs when its "
        f"candidates branch from a shared prefix (of {tokens} tokens) than over whole texts: "
        f"relative error {error:.1e}, allowed {allowed:.0e} in {recomputed.dtype}. Its tokens "
        f"would be wrong.{_hint(backbone)} Use another architecture, or "
        "args_fast.reference.decode; please report the model's name."
    )


def _hint(backbone: Backbone) -> str:
    """Some versions of transformers give models with softcaps or sinks torch's attention, which
    leaves those out: then it is the model's own pass that is wrong."""
    own = backbone.model.config._attn_implementation
    if own == "eager":
        return ""
    return f" Try attn_implementation='eager' when it is loaded (it has {own!r})."


def _refuse_nan(backbone: Backbone, outputs: str, own: bool, engine: bool) -> None:
    """Raises NonFiniteError where the model's own outputs are not finite, or the engine's are not
    and a weight shows why: some of torch's attentions give zeros for a NaN."""
    damaged = list(islice(broken_weights(backbone.named_weights()), 3))
    if not own and not (engine and damaged):
        return
    cause = (
        f"its weights hold NaN or infinity ({', '.join(damaged)}); get the checkpoint again"
        if damaged
        else "its weights are finite, so a value overflows; use dtype='float32' or 'bfloat16'"
    )
    raise NonFiniteError(
        f"the {backbone.role} ({type(backbone.model).__name__}) gives {outputs} that are NaN or "
        f"infinite: {cause}."
    )


def _difference(engine: Tensor, own: Tensor, allowed: float) -> str:
    """What the model does to the engine's rewards [n], where it is one of the usual things."""
    for name, function in (("a sigmoid", torch.sigmoid), ("a tanh", torch.tanh)):
        if (function(engine) - own).abs().max() <= allowed:
            return f"applies {name} after its head"
    ones = torch.ones_like(engine)
    line = torch.linalg.lstsq(torch.stack([engine, ones], dim=1), own[:, None]).solution
    scale, shift = line.flatten().tolist()
    if (scale * engine + shift - own).abs().max() <= allowed:
        return f"applies r * {scale:.4g} + {shift:.4g} after its head (a scale, a mean or a bias)"
    return "applies something after its head, or does not read it at the last token"
