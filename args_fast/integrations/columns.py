"""The engine's tokens in the order of ``generate``: one column of the batch after the other.

The engine decodes each row on its own; stopping criteria and streamers see columns. A row that a
criterion ends later than the engine decoded it has tokens to spare, which are dropped.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from args_fast.engine.engine import Engine
from args_fast.engine.request import Request
from args_fast.generation import Token


class Columns:
    """The rows of one call of ``generate``.

    Args:
        engine: of the pair.
        requests: one per row, not submitted yet.
        input_ids: [B, T], the prompts with their padding.
        generation_config: of the call.

    Attributes:
        scores: [B, V] f32 for each column where the call asked for them, else None: s(v), over the
            temperature where there is one; -inf for every token that was not a candidate.
    """

    def __init__(
        self,
        engine: Engine,
        requests: list[Request],
        input_ids: Tensor,
        generation_config: GenerationConfig,
    ) -> None:
        wants_scores = generation_config.return_dict_in_generate and generation_config.output_scores
        self.scores: tuple[Tensor, ...] | None = () if wants_scores else None
        self._engine = engine
        self._requests = requests
        self._ids = input_ids
        self._new: list[list[Token | None]] = []
        pad: Any = generation_config._pad_token_tensor
        self._pad = None if pad is None else int(pad)
        self._vocabulary = engine.lm.vocabulary

    def decode(self, criteria: StoppingCriteriaList, streamer: Any) -> Tensor:
        """Decode until the criteria have ended every row; returns [B, T + new tokens]."""
        has_end = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        unfinished = torch.ones(len(self._requests), dtype=torch.bool, device=self._ids.device)
        try:
            for request in self._requests:
                self._engine.submit(request)
            while bool(unfinished.any()):
                going = unfinished.tolist() if has_end else [True] * len(self._requests)
                column = [
                    self._token(request) if is_going else None
                    for request, is_going in zip(self._requests, going, strict=True)
                ]
                self._append(column)
                unfinished &= ~criteria(self._ids, self.scores)  # type: ignore[arg-type]
                if has_end:
                    self._cancel(unfinished)
                if streamer is not None:
                    streamer.put(self._ids[:, -1].cpu())
        finally:
            for request in self._requests:
                self._engine.cancel(request)
        if streamer is not None:
            streamer.end()
        return self._ids

    def rewards(self) -> Tensor:
        """[B, new tokens] f32, NaN where there is none."""
        rows = [[float("nan") if t is None else t.reward for t in column] for column in self._new]
        return torch.tensor(rows, device=self._ids.device).T

    def _token(self, request: Request) -> Token:
        """The row's token of the next column."""
        column = len(self._new)
        while len(request.tokens) <= column:
            if request.error is not None:
                raise request.error
            self._engine.step()
        return request.tokens[column]

    def _append(self, column: list[Token | None]) -> None:
        tokens = [self._pad if token is None else token.token_id for token in column]
        self._new.append(column)
        added = torch.tensor(tokens, dtype=self._ids.dtype, device=self._ids.device)
        self._ids = torch.cat([self._ids, added[:, None]], dim=1)
        if self.scores is not None:
            self.scores += (self._scores(column),)

    def _cancel(self, unfinished: Tensor) -> None:
        for request, is_going in zip(self._requests, unfinished.tolist(), strict=True):
            if not is_going:
                self._engine.cancel(request)

    def _scores(self, column: list[Token | None]) -> Tensor:
        scores = torch.full((len(column), self._vocabulary), float("-inf"))
        for row, (token, request) in enumerate(zip(column, self._requests, strict=True)):
            if token is None:
                scores[row, self._pad] = 0.0  # a row that has ended takes its padding for certain
                continue
            for candidate in token.candidates or ():
                score = candidate.score if candidate.score == candidate.score else candidate.logprob
                scores[row, candidate.token_id] = score / (request.config.temperature or 1.0)
        return scores.to(self._ids.device)
