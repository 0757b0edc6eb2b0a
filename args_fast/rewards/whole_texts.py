"""r of whole texts by a reward model's own forward: the meaning of every text reward."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from args_fast.errors import ArgsError, RewardHeadError, UnsupportedModelError
from args_fast.models.forward import OUTPUTS, without_padding
from args_fast.rewards.heads import HeadLike, Labels, RewardHead, find_head, fold_labels
from args_fast.rewards.strings import Encoded

TOKENS_PER_PASS = 16384  # padding included
# Largest difference between a batch and a text alone, relative to max(1, |r|).
SAME = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class WholeTexts:
    """A sequence classifier over whole texts: what its own forward returns on a text alone, a batch
    of one without padding and with ``pad_token_id`` None.

    Args:
        model: in eval mode.
        head: as for ``find_head``; it reads the last hidden state of a causal model's last token,
            or of an encoder's first.
        labels: which output is the reward, or the weight of each; None for the only one.
        pad: an id that fills up batches.

    Attributes:
        batches: "padded", "of one length" or "of one": what ``prove`` found to give the same as a
            text alone.

    Raises:
        RewardHeadError: the model gives no reward, or several without ``labels``.
    """

    def __init__(self, model: PreTrainedModel, head: HeadLike, labels: Labels, pad: int) -> None:
        self.model = model
        self.batches = "of one"
        self._pad = pad
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._head: RewardHead | None = None
        self._fold: dict[int, float] | None = None
        self._per_token = False
        if head is None:
            if model.get_output_embeddings() is not None:
                raise RewardHeadError(
                    f"{type(model).__name__} is a language model without a reward head. For its "
                    "log-probabilities as rewards use rewards.Autoregressive(model); for a head of "
                    "its own, head="
                )
            shapes = [self._shape(length) for length in (5, 7)]
            self._per_token = shapes == [(1, 5), (1, 7)]
            outputs = 1 if self._per_token or len(shapes[0]) == 1 else shapes[0][-1]
            self._fold = fold_labels(model, outputs, labels)
        else:
            self._head = find_head(model, head, labels)
            self._read_at = -1 if self._is_causal() else 0

    def _shape(self, length: int) -> tuple[int, ...]:
        """The shape of what the model gives for a text of so many tokens. Raises
        UnsupportedModelError where it gives nothing."""
        try:
            return tuple(self._outputs(torch.zeros(1, length, dtype=torch.long)).shape)
        except (ArgsError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"the reward model ({type(self.model).__name__}) cannot read a text of {length} "
                f"tokens ({type(error).__name__}: {error}); its config.json or its weights are not "
                "what it was saved with. Get it again"
            ) from error

    # ---- texts ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def values(self, texts: Sequence[Encoded], batches: str | None = None) -> list[float]:
        """r of each text, f32."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        values = [0.0] * len(texts)
        for batch in self._split([(i, texts[i]) for i in order], batches or self.batches):
            rewards = self._rewards([text for _, text in batch]).tolist()
            for (i, _), value in zip(batch, rewards, strict=True):
                values[i] = value
        return values

    def prove(self, texts: Sequence[Encoded]) -> None:
        """Find the largest batches that give these texts what they get alone."""
        texts = [*texts, *(replace(text, ids=text.ids[::-1]) for text in texts)]
        alone = self.values(texts, "of one")
        for batches in ("padded", "of one length"):
            try:
                together = self.values(texts, batches)
            except Exception:
                continue
            if all(map(self.agree, together, alone)):
                self.batches = batches
                return

    def agree(self, a: float, b: float) -> bool:
        """Whether two computations of a reward differ by rounding alone."""
        return abs(a - b) <= SAME.get(self.model.dtype, 2e-5) * max(1.0, abs(b))

    def _split(
        self, texts: list[tuple[int, Encoded]], batches: str
    ) -> Iterator[list[tuple[int, Encoded]]]:
        """Texts, ascending in length, as batches of what may run together."""
        batch: list[tuple[int, Encoded]] = []
        for item in texts:
            length = len(item[1].ids)
            full = (len(batch) + 1) * length > TOKENS_PER_PASS or batches == "of one"
            unlike = batches == "of one length" and batch and len(batch[0][1].ids) != length
            if batch and (full or unlike):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    # ---- the model -----------------------------------------------------------------------------

    def _rewards(self, texts: Sequence[Encoded]) -> Tensor:
        """[n] f32"""
        width = max(len(text.ids) for text in texts)
        ids = self._tensor([text.ids for text in texts], width, self._pad)
        more: dict[str, Tensor] = {}
        if "attention_mask" in self._accepted:
            more["attention_mask"] = self._tensor([[1] * len(text.ids) for text in texts], width, 0)
        if "token_type_ids" in self._accepted and texts[0].segments is not None:
            more["token_type_ids"] = self._tensor([t.segments or () for t in texts], width, 0)
        if self._head is not None:
            return self._head.rewards(self._hidden(ids, **more)[:, self._read_at])
        outputs = self._outputs(ids, **more)
        if self._per_token or outputs.dim() == 3:  # a value for every token is read at the last
            outputs = outputs[:, -1]
        outputs = outputs.float().reshape(len(texts), -1)
        if self._fold is None:
            return outputs[:, 0]
        weights = torch.zeros(outputs.shape[1], dtype=torch.float32, device=outputs.device)
        for i, weight in self._fold.items():
            weights[i] = weight
        return (outputs * weights).sum(1)

    def _tensor(self, rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
        filled = [[*row, *[fill] * (width - len(row))] for row in rows]
        return torch.tensor(filled, device=self.model.device)

    @torch.inference_mode()
    def _outputs(self, ids: Tensor, **more: Tensor) -> Tensor:
        with without_padding(self.model):
            out = self.model(input_ids=ids.to(self.model.device), **more)
        values = next((v for n in OUTPUTS if (v := getattr(out, n, None)) is not None), None)
        if values is None:
            raise RewardHeadError(
                f"the reward model ({type(self.model).__name__}) gives none of "
                f"{', '.join(OUTPUTS)}; use a *ForSequenceClassification, or head="
            )
        return values

    @torch.inference_mode()
    def _hidden(self, ids: Tensor, **more: Tensor) -> Tensor:
        body: Any = self.model.base_model
        return body(input_ids=ids.to(self.model.device), **more).last_hidden_state

    def _is_causal(self) -> bool:
        """Whether what comes later leaves an earlier hidden state as it is."""
        short, long = torch.tensor([[1, 2]]), torch.tensor([[1, 2, 3, 4]])
        a, b = self._hidden(short)[0, 1].float(), self._hidden(long)[0, 1].float()
        return bool(((a - b).norm() <= 1e-3 * b.norm()).item())
