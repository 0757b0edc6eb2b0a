"""The decode loop: prefill once, step, read, let the finished leave."""

from collections.abc import Iterator

import torch

from args_fast.engine.backbone import Backbone
from args_fast.engine.sequence import Sequence
from args_fast.engine.step import Batch, step
from args_fast.engine.tail import Tail
from args_fast.errors import NonFiniteError
from args_fast.rewards.classifier import BranchedClassifier

# Steps between two looks at the tokens. Looking costs nothing on the CPU; on CUDA it makes the host
# wait, so a sequence that has ended is noticed up to this many steps late and the surplus is
# dropped.
STEPS_PER_READ = {"cpu": 1, "cuda": 8}


@torch.inference_mode()
def run(lm: Backbone, rm: BranchedClassifier, sequences: list[Sequence]) -> Iterator[None]:
    """Decode sequences together, to the end of each. Yields whenever new tokens have reached them.

    Args:
        lm, rm: the models, on one device.
        sequences: at least one; all with the same k, max_new_tokens and need of the reward model.

    Raises:
        NonFiniteError: a model produced a NaN or an infinite reward.
    """
    config = sequences[0].config
    models = [lm, rm] if config.consults_reward else [lm]
    pages = {
        model: [model.cache.allocate(model.cache.pages_for(s.longest)) for s in sequences]
        for model in models
    }
    try:
        for i, sequence in enumerate(sequences):
            # The language model's last prompt token is the first step's input; the reward model's
            # prefix is the whole prompt, because its rows are the candidates behind it.
            lm.prefill(sequence.prompt[:-1], pages[lm][i])
            if rm in pages:
                rm.prefill(sequence.prompt, pages[rm][i])
        batch = _begin(lm, rm, sequences, pages)
        reading = STEPS_PER_READ[lm.device.type]
        alive = sequences
        for done in range(0, config.max_new_tokens, reading):
            steps = min(reading, config.max_new_tokens - done)
            for _ in range(steps):
                step(lm, rm, batch)
            _read(batch, done, done + steps, alive)
            yield
            rows = [row for row, sequence in enumerate(alive) if sequence.finish_reason is None]
            if not rows:
                return
            if len(rows) < len(alive):
                batch.keep(rows)
                alive = [alive[row] for row in rows]
    finally:
        for model, owned in pages.items():
            for taken in owned:
                model.cache.release(taken)


def _begin(
    lm: Backbone,
    rm: BranchedClassifier,
    sequences: list[Sequence],
    pages: dict[Backbone, list[list[int]]],
) -> Batch:
    device = lm.device
    k, S, B = sequences[0].config.k, sequences[0].config.max_new_tokens, len(sequences)
    lengths = [len(sequence.prompt) for sequence in sequences]
    temperatures = [sequence.config.temperature or 1.0 for sequence in sequences]
    return Batch(
        token=torch.tensor([[sequence.prompt[-1]] for sequence in sequences], device=device),
        lm=Tail(lm.cache, pages[lm], [length - 1 for length in lengths], rows=1),
        rm=Tail(rm.cache, pages[rm], lengths, rows=k) if rm in pages else None,
        w=torch.tensor([float(sequence.config.w) for sequence in sequences], device=device),
        temperature=torch.tensor(temperatures, dtype=torch.float32, device=device),
        noise=torch.stack([sequence.config.noise() for sequence in sequences]).to(device),
        step=torch.zeros(B, 1, dtype=torch.long, device=device),
        tokens=torch.zeros(B, S, dtype=torch.long, device=device),
        logprobs=torch.zeros(B, S, device=device),
        rewards=torch.zeros(B, S, device=device),
        scores=torch.zeros(B, S, device=device),
    )


def _read(batch: Batch, start: int, end: int, alive: list[Sequence]) -> None:
    """Bring the tokens of steps start ... end - 1 to the host."""
    columns = (batch.tokens, batch.logprobs, batch.rewards, batch.scores)
    rows = zip(*(column[:, start:end].tolist() for column in columns), strict=True)
    for sequence, row in zip(alive, rows, strict=True):
        for token, logprob, reward, score in zip(*row, strict=True):
            if sequence.finish_reason is None:
                _check(logprob, reward, score, batch.rm is not None)
                sequence.push(token, logprob, reward, score)


def _check(logprob: float, reward: float, score: float, rewarded: bool) -> None:
    """The ops mark a broken row with NaN, so the check costs the device nothing."""
    if logprob != logprob:
        raise NonFiniteError(
            "the language model's logits hold a NaN or +inf, or none above -inf: there is no token "
            "to choose. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
    if rewarded and score != score:
        raise NonFiniteError(
            "the reward model gave a candidate a NaN or infinite reward: no choice by it means "
            "anything. Check its weights, or use dtype='float32' (float16 overflows easily)."
        )
