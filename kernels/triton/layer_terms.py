"""What an adapter adds to the products of a decoder layer: low-rank terms, and rows of its own.

    y[adapted] += (x a^T) b + bias       a [r, K] as the weights, b [r, N] f32, bias [N] f32

Adapted are the rows from ``first`` on: all of them, or, where the language model's rows are in the
same pass, the second half. A program that multiplies a block of x by W multiplies it by a, too, and
adds its own sums times b to its own sums of x W^T. Both are linear in x, so the parts of K that
other programs take need nothing more.

Ranks are padded with zeros to RANK, a power of two of at least 16, which is 0 without a term.
What is multiplied is of the weights' type, as the rows that go into any other product.

Floor: r * (K + 2 N) * itemsize bytes; a is read once by each tile of N, from L2.
"""

import triton
import triton.language as tl


@triton.jit
def _a_at(a_ptr, k, K, RANK: tl.constexpr):
    """Where the first columns of a are."""
    return a_ptr + tl.arange(0, RANK)[:, None] * K + k


@triton.jit
def _a_block(a_at, k, start, end, rank, RANK: tl.constexpr, EVEN: tl.constexpr):
    """The columns [RANK, BLOCK_K] of a from ``start`` on."""
    within = (tl.arange(0, RANK) < rank)[:, None]
    if not EVEN:
        within = within & (start + k < end)
    return tl.load(a_at + start, mask=within, other=0.0)


@triton.jit
def _with_term(acc, low, b_ptr, stride, n, real, rank, adapted, like_ptr, RANK: tl.constexpr):
    """acc + low b in the adapted rows; the others keep their bits.
    n: the columns of b; stride: between its rows."""
    r = tl.arange(0, RANK)
    within = (r < rank)[:, None] & real[None, :]
    b = tl.load(b_ptr + r[:, None] * stride + n[None, :], mask=within, other=0.0)
    kind: tl.constexpr = like_ptr.dtype.element_ty
    added = tl.dot(low.to(kind), b.to(kind), input_precision="ieee")
    return tl.where(adapted[:, None], acc + added, acc)


@triton.jit
def _with_bias(x, bias_ptr, n, real, adapted):
    """x with an adapter's bias in the adapted rows, where it has one."""
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=real, other=0.0)
        x = tl.where(adapted[:, None], x + bias, x)
    return x


@triton.jit
def _to_tail(tail_ptr, adapted_ptr, m, first, column, width: tl.constexpr, out, within):
    """Store keys or values of rows m, those from ``first`` on in the adapted rows' tail, where
    there is one."""
    if adapted_ptr is None:
        tl.store(tail_ptr + m[:, None] * width + column, out, mask=within)
    else:
        own = (m < first)[:, None]
        tl.store(tail_ptr + m[:, None] * width + column, out, mask=within & own)
        others = (m >= first)[:, None]
        tl.store(adapted_ptr + (m - first)[:, None] * width + column, out, mask=within & others)
