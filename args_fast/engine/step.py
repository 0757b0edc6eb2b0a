"""One step of ARGS for a batch: propose k, judge k, choose one, commit it.

Shapes depend on nothing but the batch's, and the host is not asked unless a reward lives there: a
step can be captured as a graph.
"""

from dataclasses import replace

from args_fast.engine.batch import Batch
from args_fast.engine.streams import SideStream
from args_fast.rewards.base import Candidates, Choice


def step(batch: Batch, side: SideStream) -> None:
    """Choose and commit one token for every request (eq. 2 and 3 of the paper)."""
    candidates = propose(batch)
    judge(batch, candidates, side)
    choice = batch.judge.choose(candidates, detailed=batch.detailed)
    commit(batch, candidates, choice)


def begin(batch: Batch) -> None:
    """What comes before the first step of rows that have changed."""
    batch.proposer.begin(batch.token)


def propose(batch: Batch) -> Candidates:
    """The k most likely tokens of each request, with the draws of this step."""
    logprobs, ids = batch.proposer.propose(batch.token)
    noise = batch.draws
    kept = None
    if batch.narrowing.drops:
        logprobs, ids, noise, kept = batch.narrowing.replace_dropped(logprobs, ids, noise)
    candidates = Candidates(ids, logprobs, batch.w, batch.temperature, noise, kept=kept)
    if batch.judge_reads_hidden:
        candidates = replace(candidates, hidden=batch.proposer.read_ahead(ids, hidden=True))
    return candidates


def judge(batch: Batch, candidates: Candidates, side: SideStream) -> None:
    """Let the reward read the candidates, next to a language model that looks ahead or in one pass
    with it."""
    if batch.judge_reads_hidden:
        batch.judge.read(candidates)
        return
    if batch.joined:
        batch.proposer.read_ahead_with(candidates, batch.judge)
        return
    with side():
        batch.judge.read(candidates)
    batch.proposer.read_ahead(candidates.ids)
    side.join()


def commit(batch: Batch, candidates: Candidates, choice: Choice) -> None:
    """Write down the chosen tokens, and tell the language model."""
    batch.write(candidates, choice)
    batch.proposer.accept(choice.branch)
