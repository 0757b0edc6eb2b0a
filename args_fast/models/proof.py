"""Proof at load: a branched forward is compared with a recomputed one before any token is decoded.

It costs a few tokens of work and covers every architecture that is new: whatever a model
does that the engine does not know of shows as a disagreement, and becomes an error, not wrong
tokens.
"""

import torch
from torch import Tensor

from args_fast.errors import ProofError
from args_fast.kvcache.storage import PagedCache, pages_for
from args_fast.models.backbone import Backbone
from args_fast.models.branches import Branches

BRANCHES = 3
LONGEST_WINDOW = 128  # a window up to this is exceeded by the texts of the proof

# Largest relative error ||a - b|| / ||b|| that rounding explains.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def prove(backbone: Backbone, *, logits: bool, branches: int = BRANCHES) -> None:
    """Prefill twice, branch, commit, branch again; against the model's own pass over whole texts.

    Args:
        backbone: the model to prove.
        logits: compare the model's logits (a language model) or its hidden states (a reward model).
        branches: rows of the tail.

    Raises:
        ProofError: they disagree.
    """
    longest = min(backbone.max_length, LONGEST_WINDOW + 5)
    length = backbone.plain_up_to + 3 if 5 <= backbone.plain_up_to <= LONGEST_WINDOW else 5
    T = int(max(1, min(length, longest - 2)))
    if backbone.max_length < T + 2:
        return  # too short a context to branch twice: nothing can be decoded in it either
    ids = torch.randint(
        backbone.vocabulary, (T + 2, branches), generator=torch.Generator().manual_seed(0)
    ).tolist()
    pages = list(range(1, 1 + pages_for(T + 2)))
    # Made outside inference mode as the engine's own is: a graph tells the two kinds apart.
    cache = PagedCache(backbone.layout, len(pages))
    with torch.inference_mode():
        _branch_twice(backbone, [row[0] for row in ids[:T]], ids[T:], cache, pages, logits)


def _branch_twice(
    backbone: Backbone,
    prompt: list[int],
    steps: list[list[int]],
    cache: PagedCache,
    pages: list[int],
    logits: bool,
) -> None:
    kv_layout, device, branches = backbone.layout, backbone.device, len(steps[0])
    # In two pieces, as prompts are that begin alike: behind a prefix another attention serves.
    half = len(prompt) // 2
    backbone.prefill(cache, prompt[:half], pages)
    backbone.prefill(cache, prompt[half:], pages, half)
    rows = (kv_layout.layers, 1, branches, kv_layout.kv_heads, kv_layout.head_size)
    k, v = (torch.zeros(rows, dtype=kv_layout.dtype, device=device) for _ in range(2))
    table = torch.tensor([pages], dtype=torch.int32, device=device)
    lengths = torch.tensor([len(prompt)], dtype=torch.int32, device=device)
    tail = Branches(cache, table, lengths, k, v)
    run = backbone.logits if logits else backbone.hidden
    text, taken = prompt, min(1, branches - 1)
    for candidates in steps:
        branched = run(torch.tensor([candidates], device=device), tail.positions(), tail)[0]
        whole = torch.tensor([[*text, v] for v in candidates], device=device)
        _compare(backbone, branched, _recompute(backbone, whole, logits))
        tail.commit(torch.tensor([taken], device=device))
        text = [*text, candidates[taken]]


def _recompute(backbone: Backbone, texts: Tensor, logits: bool) -> Tensor:
    if logits:
        return backbone.model(input_ids=texts, use_cache=False).logits[:, -1]
    return backbone.model.base_model(input_ids=texts, use_cache=False).last_hidden_state[:, -1]


def _compare(backbone: Backbone, branched: Tensor, recomputed: Tensor) -> None:
    a, b = branched.float(), recomputed.float()
    error = ((a - b).norm() / b.norm()).item()
    allowed = TOLERANCE[recomputed.dtype]
    if not error <= allowed:  # NaN fails too
        raise ProofError(
            f"the {backbone.role} ({type(backbone.model).__name__}) gives other outputs when its "
            "candidates branch from a shared prefix than over whole texts: relative error "
            f"{error:.1e}, allowed {allowed:.0e} in {recomputed.dtype}. Its tokens would be "
            f"wrong.{_hint(backbone)} Use another architecture, or args_fast.reference.decode; "
            "please report the model's name."
        )


def _hint(backbone: Backbone) -> str:
    """Some versions of transformers give models with softcaps or sinks torch's attention, which
    leaves those out: then it is the model's own pass that is wrong."""
    own = backbone.model.config._attn_implementation
    if own == "eager":
        return ""
    return f" Try attn_implementation='eager' when it is loaded (it has {own!r})."
