"""One Hugging Face model, driven by the engine: its forward passes and its limits."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from args_fast.errors import ConfigError, LengthError
from args_fast.kvcache.storage import PagedCache
from args_fast.kvcache.transfer import send
from args_fast.models import fused_prefill
from args_fast.models.attention import CONTEXT, AttentionContext, driven
from args_fast.models.branches import Branches
from args_fast.models.compact import named_weights
from args_fast.models.compiled import Compiled
from args_fast.models.flash import torch_has_flash, varlen_attention
from args_fast.models.fused import Fused, FusedLayers, fused_layers, is_hooked
from args_fast.models.linear import FewRows, few_rows, takes
from args_fast.models.prefill import Prefill
from args_fast.models.probe import probe
from args_fast.ops.decoder_layers import faster_rows

# Rows per prefill chunk where the attention holds something for each row and each token: scores, in
# the general op, or a mask. It bounds what is held at once.
PREFILL_CHUNK = 512

Forward = Callable[[Tensor, Tensor, Any], Tensor]


class Backbone:
    """A transformer whose attention and keys and values are ours.

    Args:
        model: in eval mode; its forward gives the logits, that of ``model.base_model`` the hidden
            states.
        role: "language model" or "reward model", for messages.
        fused: run the layers of a tail as one op, where the model is known and the op is built;
            "auto": in passes of ``most_fused_rows``. The attribute of this name can be set at any
            time.

    Raises:
        UnsupportedModelError: the model cannot be driven; the message says why.
    """

    def __init__(self, model: PreTrainedModel, role: str, *, fused: Fused = "auto") -> None:
        self.model = model
        self.role = role
        traits = probe(model, role)
        self.layout = traits.layout
        self.plain_up_to = traits.plain_up_to
        self.device = traits.layout.device
        self.vocabulary: int = model.get_input_embeddings().num_embeddings  # type: ignore
        self.max_length = traits.limits.max_length
        self.limit_reason = traits.limits.reason
        self.thresholds = traits.limits.thresholds
        self._flash = None if traits.sinks else varlen_attention(traits.layout)
        self._linear = few_rows(self.device)
        self._tail_hidden: Forward = partial(hidden_states, model)
        self._tail_logits: Forward = partial(_logits, model)
        self.fused: Fused = fused
        self._options = traits.options

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that its passes read, by name."""
        yield from named_weights(self.model)

    def compile(self, mode: str) -> None:
        """Run tails through torch.compile from now on. Prompts stay as they are: no two chunks have
        one length. CompileError comes with the first forward pass where that cannot be done."""
        name = f"the {self.role} ({type(self.model).__name__})"
        self.drop_fused_layers()
        self._tail_hidden = Compiled(partial(hidden_states, self.model), name, mode)
        self._tail_logits = Compiled(partial(_logits, self.model), name, mode)

    def hidden(self, ids: Tensor, positions: Tensor | None, context: AttentionContext) -> Tensor:
        """ids, positions [B, N] -> the last hidden state [B, N, H]. ``positions``: None for those
        of branches, which fused layers find themselves."""
        if isinstance(context, Branches) and (layers := self.fused_layers(ids.numel())):
            return layers.hidden(ids, context)
        positions = _positions(positions, context)
        with driven(self.model), self._linear:
            if isinstance(context, Branches):
                return self._tail_hidden(ids, positions, context)
            return hidden_states(self.model, ids, positions, context)

    def logits(self, ids: Tensor, positions: Tensor | None, context: AttentionContext) -> Tensor:
        """ids, positions [B, N] -> logits [B, N, V], through the model's own forward where it does
        more than multiply with its output layer. ``positions``: None for those of branches."""
        if (hidden := self._fused_hidden(ids, context)) is not None:
            return self.head(hidden)
        positions = _positions(positions, context)
        with driven(self.model), self._linear:
            if isinstance(context, Branches):
                return self._tail_logits(ids, positions, context)
            return _logits(self.model, ids, positions, context)

    @cached_property
    def _layers(self) -> FusedLayers | str:  # when first used: a model may be quantized before
        return fused_layers(self.model, self._options, self.layout.head_size)

    @property
    def most_fused_rows(self) -> float:
        """Rows of a tail's pass (B * N) up to which the fused layers run it, where the model is
        known: with "auto", up to which they are faster than its modules."""
        if self.fused == "auto":
            return faster_rows(self.device)
        return math.inf if self.fused else 0

    def fused_layers(self, rows: float = 1) -> FusedLayers | None:
        """What runs the layers in a pass of a tail of B * N ``rows``; None where the model's own
        modules do."""
        layers = self._layers if rows <= self.most_fused_rows else ""
        return layers if isinstance(layers, FusedLayers) and layers.applies else None

    @contextmanager
    def through_modules(self) -> Iterator[None]:
        """Every pass within goes through the model's modules."""
        asked, self.fused = self.fused, False
        try:
            yield
        finally:
            self.fused = asked

    @property
    def refusal(self) -> str | None:
        """Why the layers of the model are not run as one op, where that is asked for and it is a
        property of the model."""
        return (
            self._layers or None if self.fused is True and isinstance(self._layers, str) else None
        )

    def _fused_hidden(self, ids: Tensor, context: AttentionContext) -> Tensor | None:
        """The last hidden state by the fused layers, where all that follows is the output layer."""
        if isinstance(context, Branches) and (layers := self.fused_layers(ids.numel())):
            return layers.hidden(ids, context) if self.has_plain_head else None
        return None

    def look_once(self) -> None:
        """Passes to come may take the model to be as it is at the first of them, until this is
        called again."""
        if isinstance(self.__dict__.get("_layers"), FusedLayers):
            self._layers.look_once()  # type: ignore[union-attr]

    def drop_fused_layers(self) -> None:
        """Run the layers of a tail through the model's modules from now on."""
        self._layers = ""

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> logits [..., V], where ``has_plain_head``."""
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[assignment]
        if isinstance(self._linear, FewRows) and type(head) is nn.Linear and not is_hooked(head):
            operands = hidden, head.weight, head.bias
            if takes(*operands):  # what follows does the same, and takes longer to come to it
                return self._linear.product(*operands)
        with self._linear:
            return head(hidden)

    @cached_property
    @torch.inference_mode()
    def has_plain_head(self) -> bool:
        """Whether the logits are the output layer's product with the last hidden state, and nothing
        else: one pass over a few ids shows it. A model with a head of its own kind has none."""
        if self.model.get_output_embeddings() is None:
            return False
        ids = torch.arange(min(5, self.vocabulary), device=self.device)[None]
        with self._head_input() as states, self._linear:
            logits = self.model(input_ids=ids, use_cache=False).logits
        return torch.equal(self.head(states[-1]), logits)

    def hidden_and_logits(
        self, ids: Tensor, positions: Tensor | None, context: AttentionContext
    ) -> tuple[Tensor, Tensor]:
        """ids, positions [B, N] -> the last hidden state [B, N, H] and the logits [B, N, V], in one
        pass. ``positions``: None for those of branches."""
        if (hidden := self._fused_hidden(ids, context)) is not None:
            return hidden, self.head(hidden)
        positions = _positions(positions, context)
        with self._head_input() as states, driven(self.model), self._linear:
            logits = _logits(self.model, ids, positions, context)
        return states[-1], logits

    def own_forward(self) -> AbstractContextManager:
        """To be entered around passes through ``model`` that are not the engine's."""
        return nullcontext()

    @contextmanager
    def _head_input(self) -> Iterator[list[Tensor]]:
        """What the output layer is given in the passes within."""
        states: list[Tensor] = []
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[assignment]
        hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        try:
            yield states
        finally:
            hook.remove()

    def prefill(self, cache: PagedCache, ids: list[int], pages: list[int], start: int = 0) -> None:
        """Store the K/V of ids after the ``start`` that are stored: once, whatever k is."""
        if (layers := self.fused_layers()) and fused_prefill.takes(layers, len(ids)):
            return fused_prefill.prefill(layers, [cache], ids, pages, start)
        for offset, piece in self.pieces(ids, start):
            rows = send([piece], torch.int64, self.device)
            context = Prefill(cache, pages, start + offset, len(piece), self._flash)
            self.hidden(rows, context.position[None], context)

    def pieces(self, ids: list[int], start: int) -> Iterator[tuple[int, list[int]]]:
        """The ids of a prompt as they go through the modules together, each piece with its place
        among them."""
        chunk = max(1, len(ids)) if self._in_one(start, len(ids)) else PREFILL_CHUNK
        return ((offset, ids[offset : offset + chunk]) for offset in range(0, len(ids), chunk))

    def _in_one(self, start: int, rows: int) -> bool:
        """Whether every layer's attention works on tiles, and needs no more memory for more rows
        than the rows take themselves."""
        if self._flash is not None:
            return True
        plain = start + rows <= self.plain_up_to
        return plain and (start == 0 or torch_has_flash(self.layout))


def _positions(positions: Tensor | None, context: AttentionContext) -> Tensor:
    if positions is not None:
        return positions
    assert isinstance(context, Branches)
    return context.positions()


def hidden_states(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, context: AttentionContext
) -> Tensor:
    """ids, positions [B, N] -> [B, N, H], by the model's own modules; while they are ``driven``."""
    out = model.base_model(
        input_ids=ids, position_ids=positions, use_cache=False, **{CONTEXT: context}
    )
    return out.last_hidden_state


def _logits(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, context: AttentionContext
) -> Tensor:
    out = model(input_ids=ids, position_ids=positions, use_cache=False, **{CONTEXT: context})
    return out.logits


def check_eval(backbone: Backbone) -> None:
    """For every request, as the caller may change a model between decodes. Raises ConfigError where
    it is in training mode."""
    backbone.look_once()
    if backbone.model.training:
        raise ConfigError(
            f"the {backbone.role} is in training mode, so its outputs are random; call .eval()"
        )


def check_length(backbone: Backbone, prompt: int, new: int) -> None:
    """Raises LengthError where a model cannot take a prompt with this many new tokens."""
    if prompt + new > backbone.max_length:
        room = int(backbone.max_length) - prompt
        fewer = f", or set max_new_tokens to at most {room}" if room > 0 else ""
        raise LengthError(
            f"the prompt has {prompt} tokens and {new} new ones are asked for, {prompt + new} "
            f"together; the {backbone.role} takes {backbone.max_length:.0f}{backbone.limit_reason}"
            f". Shorten the prompt{fewer}."
        )
