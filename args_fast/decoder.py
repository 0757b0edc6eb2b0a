"""The public decoder: prompts in, reward-guided generations out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import loading, quantization
from args_fast.config import DecodingConfig
from args_fast.engine.backbone import Backbone
from args_fast.engine.proof import prove
from args_fast.engine.run import run
from args_fast.engine.sequence import Sequence as Decoding
from args_fast.errors import ConfigError, LengthError, PairMismatchError, PromptError
from args_fast.generation import Generation, Token
from args_fast.rewards import BranchedClassifier
from args_fast.text import TextStream

Prompt = str | Sequence[int]


class ArgsDecoder:
    """Decodes with a language model guided by a reward model.

    Both models stay usable outside: their attention is the engine's only inside its own forward
    passes. A decoder is not safe to use from two threads at once.

    Args:
        lm: a causal language model of transformers.
        rm: a ``*ForSequenceClassification`` of transformers with one label, on the same device,
            that shares the language model's tokens.
        tokenizer: of both; None for ids in, ids out.
        max_batch_size: prompts decoded together at most; longer lists are decoded in turns.

    Raises:
        UnsupportedModelError, RewardHeadError: a model cannot be driven by the engine.
        PairMismatchError: the two models cannot work on the same ids.
        ProofError: a branched forward disagrees with a recomputed one.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        rm: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_size: int = 64,
    ) -> None:
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}; it must be at least 1")
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        for model in (lm, rm):
            if isinstance(model, torch.nn.Module):
                model.eval()  # dropout would make every reward a lottery
        self._lm = Backbone(lm, "language model")
        self._rm = BranchedClassifier(rm)
        self.device = self._lm.device
        if self._rm.device != self.device:
            raise PairMismatchError(
                f"the language model is on {self.device} and the reward model on "
                f"{self._rm.device}; move both to one device"
            )
        if self._rm.vocabulary < self._lm.vocabulary:
            raise PairMismatchError(
                f"the language model can choose among {self._lm.vocabulary} ids, but the reward "
                f"model has embeddings for {self._rm.vocabulary}; use a pair that shares one "
                f"vocabulary, or rm.resize_token_embeddings({self._lm.vocabulary}) if the ids "
                "beyond are padding"
            )
        prove(self._lm, logits=True)
        prove(self._rm, logits=False)

    @classmethod
    def from_pretrained(
        cls,
        lm: str | Path,
        rm: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        max_batch_size: int = 64,
        lm_quantization: str | None = None,
        rm_quantization: str | None = None,
    ) -> "ArgsDecoder":
        """Load a pair from paths or hub ids (safetensors only).

        Args:
            lm, rm: the models; ``lm``'s tokenizer serves both and is compared with ``rm``'s.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...
            dtype: "auto" (the checkpoint's on CUDA, float32 on the CPU), "float32", "bfloat16",
                "float16", or a torch.dtype.
            trust_remote_code: run code that comes with the models; off unless asked for.
            lm_quantization, rm_quantization: "int8" or "fp8" weights for the linear layers of that
                model, through torchao; None for the weights as they are. The reward head stays.

        Raises:
            ConfigError, and what the constructor raises.
        """
        at = loading.resolve_device(device)
        kind = loading.resolve_dtype(dtype, at)
        quantization.check(lm_quantization, "lm_quantization", at)
        quantization.check(rm_quantization, "rm_quantization", at)
        options = {"trust_remote_code": trust_remote_code}
        tokenizer = loading.load_tokenizer(lm, **options)
        other = loading.load_tokenizer(rm, **options)
        if tokenizer is not None and other is not None:
            loading.check_tokenizers(tokenizer, other)
        language_model = loading.load_lm(lm, at, kind, **options)
        quantization.quantize(language_model, lm_quantization)
        reward_model = loading.load_rm(rm, at, kind, **options)
        quantization.quantize(reward_model.base_model, rm_quantization)
        return cls(language_model, reward_model, tokenizer=tokenizer, max_batch_size=max_batch_size)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], config: DecodingConfig | None = None
    ) -> list[Generation]:
        """Decode one prompt or many.

        Args:
            prompts: str, list of str, list of ids, or list of lists of ids.
            config: the options; None for ``DecodingConfig()``.

        Returns:
            One Generation per prompt, in order; a list of one for a single prompt. Each prompt gets
            the tokens it would get alone.

        Raises:
            PromptError, LengthError, ConfigError: before any work is done.
            NonFiniteError: a model produced a NaN or infinite value.
        """
        config = config or DecodingConfig()
        sequences = [self._sequence(ids, config) for ids in self._encode(prompts)]
        for start in range(0, len(sequences), self.max_batch_size):
            for _ in run(self._lm, self._rm, sequences[start : start + self.max_batch_size]):
                pass
        return [sequence.generation() for sequence in sequences]

    def stream(self, prompt: Prompt, config: DecodingConfig | None = None) -> Iterator[Token]:
        """Decode one prompt and yield its tokens as they are chosen; the pieces of text add up to
        ``Generation.text``. Arguments and errors as for ``generate``."""
        config = config or DecodingConfig()
        encoded = self._encode(prompt)
        if len(encoded) != 1:
            raise PromptError(f"stream decodes one prompt, {len(encoded)} were given; use generate")
        return self._stream(self._sequence(encoded[0], config))

    def _stream(self, sequence: Decoding) -> Iterator[Token]:
        for _ in run(self._lm, self._rm, [sequence]):
            yield from sequence.take()

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that proposes; use it as ever, between decodes."""
        return self._lm.model

    @property
    def reward_model(self) -> PreTrainedModel:
        """The model that judges."""
        return self._rm.model

    @torch.inference_mode()
    def rewards(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """r([x, y]) of finished texts, read at the last token of each prompt with its continuation
        (ids): what greedy generations are judged by, which carry no rewards of their own."""
        encoded = zip(self._encode(prompts), continuations, strict=True)
        return [self._rewards_along(x, y)[-1] for x, y in encoded]

    @torch.inference_mode()
    def token_rewards(self, prompt: Prompt, continuation: Sequence[int]) -> list[float]:
        """r([x, y]) after every token of a continuation (ids)."""
        (ids,) = self._encode(prompt)
        return self._rewards_along(ids, continuation)[len(ids) :]

    def _rewards_along(self, prompt: list[int], continuation: Sequence[int]) -> list[float]:
        """The reward model is causal: its head at a token judges the text that ends there."""
        self._check_length(self._rm, len(prompt), len(continuation))
        text = torch.tensor([[*prompt, *continuation]], device=self.device)
        hidden = self._rm.model.base_model(input_ids=text, use_cache=False).last_hidden_state
        return self._rm.reward(hidden[0]).tolist()

    # ---- prompts ---------------------------------------------------------------------------------

    def _encode(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        if isinstance(prompts, str):
            return [self._ids(prompts)]
        if not isinstance(prompts, Sequence):
            raise PromptError(
                f"prompts is a {type(prompts).__name__}; it must be a str, a list of str, a list "
                "of ids, or a list of lists of ids"
            )
        if prompts and all(isinstance(item, int) for item in prompts):
            return [self._ids(cast(Sequence[int], prompts))]
        return [self._ids(cast(Prompt, prompt)) for prompt in prompts]

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PromptError(
                    "this decoder has no tokenizer, so prompts have to be lists of ids; pass "
                    "tokenizer= to decode text"
                )
            ids = self.tokenizer(prompt).input_ids
        elif isinstance(prompt, Sequence):
            ids = list(prompt)
        else:
            raise PromptError(
                f"a prompt is a {type(prompt).__name__}; it must be a str or a list of ids"
            )
        if not ids:
            raise PromptError(f"the prompt {prompt!r} has no tokens; give at least one")
        for token in ids:
            if not isinstance(token, int) or not 0 <= token < self._lm.vocabulary:
                raise PromptError(
                    f"the prompt holds {token!r}, which is no id of this vocabulary; ids go from 0 "
                    f"to {self._lm.vocabulary - 1}"
                )
        return ids

    def _sequence(self, ids: list[int], config: DecodingConfig) -> Decoding:
        if config.k > self._lm.vocabulary:
            raise ConfigError(
                f"k is {config.k}, but the vocabulary has {self._lm.vocabulary} tokens; k can be "
                f"at most that"
            )
        if config.stop and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; this decoder has none")
        for model in (self._lm, self._rm) if config.consults_reward else (self._lm,):
            if model.model.training:
                raise ConfigError(
                    f"the {model.role} is in training mode, so its outputs are random; call .eval()"
                )
            self._check_length(model, len(ids), config.max_new_tokens)
        text = None if self.tokenizer is None else TextStream(self.tokenizer, config.stop)
        return Decoding(ids, config, self._end_tokens(config), text)

    def _check_length(self, model: Backbone, prompt: int, new: int) -> None:
        if prompt + new > model.max_length:
            raise LengthError(
                f"the prompt has {prompt} tokens and {new} new ones are asked for, {prompt + new} "
                f"together; the {model.role} takes {model.max_length:.0f}. Shorten the prompt, or "
                f"set max_new_tokens to at most {max(0, int(model.max_length) - prompt)}."
            )

    def _end_tokens(self, config: DecodingConfig) -> frozenset[int]:
        if config.eos_token_ids is not None:
            return frozenset(config.eos_token_ids)
        generation = self._lm.model.generation_config
        eos = (generation or self._lm.model.config).eos_token_id
        return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
