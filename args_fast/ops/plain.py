"""The ops in plain torch: what they mean, on any device. Every other implementation is tested
against these. Accumulation is in float32 whatever the inputs are.
"""

import torch
from torch import Tensor


def topk_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely tokens of each row with their full-vocabulary log-softmax.

    logits [B, V] f32, bf16 or f16; 1 <= k <= V. Returns logprobs [B, k] f32, descending, and ids
    [B, k] i64; equal logits come in order of their ids. -inf is an ordinary logit. A row that has
    no distribution (a NaN, a +inf, or nothing above -inf) gets NaN for all its logprobs and ids
    0 ... k-1, so that the error is seen where the tokens are read.
    """
    logits = logits.float() + 0.0  # -0.0 becomes 0.0: the two must tie
    # One integer key orders by (logit descending, id ascending), which torch.topk alone does not
    # promise: the float's bits made monotone, then the id counted backwards.
    bits = logits.view(torch.int32).long()
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    backwards = torch.arange(logits.shape[1] - 1, -1, -1, device=logits.device)
    keys = torch.topk((monotone << 32) + backwards, k, dim=1).values
    ids = logits.shape[1] - 1 - (keys & 0xFFFFFFFF)

    norm = torch.logsumexp(logits, dim=1, keepdim=True)
    logprobs = logits.gather(1, ids) - norm
    broken = ~torch.isfinite(norm)
    ranks = torch.arange(k, device=logits.device).expand_as(ids)
    return logprobs.masked_fill(broken, torch.nan), torch.where(broken, ranks, ids)


def branch_attention(
    q: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    prefix_lengths: Tensor,
    tail_mask: Tensor,
    scale: float,
    sliding_window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of a tail of N rows to one shared prefix and to their ancestors in the tail.

    q [B, N, Hq, D]; tail_k, tail_v [B, N, Hkv, D]; k_pages, v_pages [pages, page_size, Hkv, D];
    page_table [B, P] i32: token j of sequence b is row j % page_size of page page_table[b, j //
    page_size]; prefix_lengths [B] i32, 0 allowed; tail_mask [N, N] bool, row i sees row j, the
    diagonal set. A row's position is its sequence's prefix length plus its number of ancestors.
    sliding_window: a row at position p sees positions above p - sliding_window (0: all). softcap c:
    scores become c * tanh(score / c) (0: none). sinks [Hq]: one more logit per head in the
    softmax's denominator. Rows of a page at or past the prefix length have no influence, whatever
    they hold.

    Returns [B, N, Hq, D] in q's dtype.
    """
    B, N, Hq, D = q.shape
    page_size, Hkv = k_pages.shape[1:3]
    G = Hq // Hkv
    P = page_table.shape[1]
    T = P * page_size

    def rows(pages: Tensor) -> Tensor:  # [B, Hkv, T, D]
        gathered = pages.index_select(0, page_table.flatten()).view(B, T, Hkv, D)
        return gathered.transpose(1, 2).float()

    key_position = torch.arange(T, device=q.device)
    stored = key_position < prefix_lengths[:, None]  # [B, T]
    prefix_k = rows(k_pages)
    prefix_v = rows(v_pages).masked_fill_(~stored[:, None, :, None], 0.0)  # a copy: rows gathers
    grouped = q.reshape(B, N, Hkv, G, D).permute(0, 2, 1, 3, 4).reshape(B, Hkv, N * G, D).float()

    depth = tail_mask.sum(1) - 1  # [N] ancestors of each row
    position = prefix_lengths[:, None] + depth  # [B, N]
    sees_prefix = stored[:, None, :].expand(B, N, T)
    sees_tail = tail_mask
    if sliding_window:
        sees_prefix = sees_prefix & (position[:, :, None] - key_position < sliding_window)
        sees_tail = sees_tail & (depth[:, None] - depth < sliding_window)
    sees = torch.cat([sees_prefix, sees_tail.expand(B, N, N)], dim=2)

    to_tail = tail_k.transpose(1, 2).transpose(2, 3).float()
    scores = torch.cat([grouped @ prefix_k.transpose(2, 3), grouped @ to_tail], dim=3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(B, Hkv, N, G, T + N).masked_fill(~sees[:, None, :, None, :], -torch.inf)
    if sinks is not None:
        column = sinks.float().view(1, Hkv, 1, G, 1).expand(B, Hkv, N, G, 1)
        scores = torch.cat([scores, column], dim=4)
    weights = torch.softmax(scores, dim=4)[..., : T + N].reshape(B, Hkv, N * G, T + N)
    out = weights[..., :T] @ prefix_v + weights[..., T:] @ tail_v.transpose(1, 2).float()
    by_row = out.view(B, Hkv, N, G, D).permute(0, 2, 1, 3, 4).reshape(B, N, Hq, D).to(q.dtype)
    return by_row.contiguous()  # as every other implementation's, which a compiled model relies on


def select(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    logprobs: Tensor,
    w: Tensor,
    temperature: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidate that ARGS takes: eq. 2 of the paper, and eq. 3 by the Gumbel-max trick.

    hidden [B, k, H]: the reward model's last hidden state of each candidate; head_weight [H],
    head_bias [1]: its linear head; logprobs [B, k] f32, descending; w, temperature [B] f32; noise
    [B, k] f32: standard Gumbel, or zeros with temperature 1 for the argmax. The choice is the first
    maximum of (logprobs + w * reward) / temperature + noise.

    Returns branch [B] i64, and the reward and score [B] f32 of that branch. Where a reward is not
    finite or a logprob is NaN the row's score is NaN and its branch 0; its reward is NaN exactly
    when a reward was at fault.
    """
    rewards = hidden.float() @ head_weight.float()
    if head_bias is not None:
        rewards = rewards + head_bias.float()
    scores = logprobs + w[:, None] * rewards
    bad_reward = ~torch.isfinite(rewards).all(dim=1)
    broken = bad_reward | torch.isnan(logprobs).any(dim=1)
    branch = torch.argmax(scores / temperature[:, None] + noise, dim=1).masked_fill(broken, 0)
    reward = rewards.gather(1, branch[:, None])[:, 0].masked_fill(bad_reward, torch.nan)
    score = scores.gather(1, branch[:, None])[:, 0].masked_fill(broken, torch.nan)
    return branch, reward, score


def commit(
    tail_k: Tensor,
    tail_v: Tensor,
    branch: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
) -> None:
    """Write the winning row of each tail after its prefix, in every layer, in place.

    tail_k, tail_v [L, B, N, Hkv, D]; branch [B] i64; k_pages, v_pages
    [L, pages, page_size, Hkv, D]; page_table [B, P] i32; lengths [B] i32: row lengths[b] of
    sequence b is written, then every length grows by one.
    """
    page_size = k_pages.shape[2]
    rows_of_batch = torch.arange(branch.shape[0], device=branch.device)
    index = lengths.long()
    page = page_table[rows_of_batch, index // page_size].long()
    k_pages[:, page, index % page_size] = tail_k[:, rows_of_batch, branch]
    v_pages[:, page, index % page_size] = tail_v[:, rows_of_batch, branch]
    lengths += 1


def select_commit(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    logprobs: Tensor,
    w: Tensor,
    temperature: Tensor,
    noise: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tail of a step: ``select``, then ``commit`` of the branch that it chose.

    The arguments are those of the two; tail row c is candidate c. A row whose score is NaN commits
    its branch 0 like any other.

    Returns branch [B] i64, and reward and score [B] f32, as ``select`` does.
    """
    branch, reward, score = select(hidden, head_weight, head_bias, logprobs, w, temperature, noise)
    commit(tail_k, tail_v, branch, k_pages, v_pages, page_table, lengths)
    return branch, reward, score
