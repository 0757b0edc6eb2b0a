"""Ways of getting an op wrong, each a mistake that somebody made: the tests have to notice them."""

import torch

from args_fast.ops import plain


def ignores_the_prefix(q, tail_k, tail_v, k_pages, v_pages, table, lengths, *rest):
    return plain.branch_attention(
        q, tail_k, tail_v, k_pages, v_pages, table, torch.zeros_like(lengths), *rest
    )


def sees_its_siblings(q, tail_k, tail_v, k_pages, v_pages, table, lengths, mask, *rest):
    everything = torch.ones_like(mask)
    return plain.branch_attention(
        q, tail_k, tail_v, k_pages, v_pages, table, lengths, everything, *rest
    )


def forgets_the_last_row(q, tail_k, tail_v, k_pages, v_pages, table, lengths, *rest):
    shorter = (lengths - 1).clamp(min=0)
    return plain.branch_attention(q, tail_k, tail_v, k_pages, v_pages, table, shorter, *rest)


def forgets_the_window(q, *args):
    *rest, _window, softcap, sinks = args
    return plain.branch_attention(q, *rest, 0, softcap, sinks)


def forgets_the_softcap(q, *args):
    *rest, _softcap, sinks = args
    return plain.branch_attention(q, *rest, 0.0, sinks)


def forgets_the_sinks(q, *args):
    *rest, _sinks = args
    return plain.branch_attention(q, *rest, None)


def commits_the_first_branch(tail_k, tail_v, branch, *rest):
    return plain.commit(tail_k, tail_v, torch.zeros_like(branch), *rest)


def flattens_the_batch(hidden, head, bias, logprobs, w, temperature, noise):
    branch, reward, score = plain.select(hidden, head, bias, logprobs, w, temperature, noise)
    best = score.argmax()
    return branch[best].expand_as(branch).contiguous(), reward, score


def takes_the_lowest(hidden, head, bias, logprobs, w, temperature, noise):
    return plain.select(hidden, head, bias, logprobs, -w, temperature, noise)


# op, what stands in its place, an architecture in which it matters
MUTANTS = [
    ("branch_attention", ignores_the_prefix, "llama"),
    ("branch_attention", sees_its_siblings, "llama"),
    ("branch_attention", forgets_the_last_row, "llama"),
    ("branch_attention", forgets_the_window, "mistral"),
    ("branch_attention", forgets_the_softcap, "gemma2"),
    ("branch_attention", forgets_the_sinks, "gpt_oss"),
    ("commit", commits_the_first_branch, "llama"),
    ("select", flattens_the_batch, "llama"),
    ("select", takes_the_lowest, "llama"),
]
