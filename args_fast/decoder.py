"""The public decoder: prompts in, reward-guided generations out."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.config import DecodingConfig, configs_for
from args_fast.drafting.loading import load_drafts
from args_fast.encoding import Encoder, check_tokenizer
from args_fast.engine.agreement import choices_along
from args_fast.engine.capacity import CacheUse, pages_within
from args_fast.engine.engine import Engine
from args_fast.engine.lookahead import joined_rows, lookahead_rows
from args_fast.engine.request import Request
from args_fast.errors import ArgsError, ConfigError, DecoderBusyError, PromptError
from args_fast.generation import Generation, Token
from args_fast.models import adapters, loading, processors
from args_fast.models.backbone import Backbone
from args_fast.models.inference import without_autocast
from args_fast.models.proof import prove_language_model
from args_fast.options import EngineOptions, accepts_engine_options
from args_fast.progress import Progress
from args_fast.prompts import Conversation, Plain, Prompt, conversations
from args_fast.rewards import Classifier, Mixture, Reward
from args_fast.rewards.mixture import NamedRewards
from args_fast.rewards.specs import load_rewards

RewardLike = PreTrainedModel | Reward | Mixture


class ArgsDecoder:
    """Decodes with a language model guided by a reward.

    Both models stay usable outside: their attention is the engine's only inside its own forward
    passes. Everything that is under way in one decoder (lists, streams, threads) is decoded
    together. To serve many users from one event loop there is ``AsyncArgsDecoder``.

    Args:
        lm: a causal language model of transformers; with an adapter in it, a merged copy is used.
        rm: the reward: a ``*ForSequenceClassification`` of transformers with one label that shares
            the language model's tokens, an object of ``args_fast.rewards``, or several of these by
            name. A model is on the language model's device, or on a CUDA device of its own.
        tokenizer: of the language model; None for ids in, ids out.
        logits_processor: None for the paper's algorithm (rules of the language model's
            generation_config are named in a warning and ignored); "model" to obey them, so that
            k = 1 is ``lm.generate(do_sample=False)``; or a LogitsProcessorList of transformers,
            for every request. Such a decoder runs one step at a time.
        options: how the engine uses the machine, as an ``EngineOptions`` or as its fields.

    Attributes:
        reward_names: what ``DecodingConfig.reward`` may name.

    Raises:
        UnsupportedModelError, RewardHeadError: the engine cannot drive a model.
        PairMismatchError: the models cannot work on the same ids.
        ConfigError: an option is outside its range.
        ProofError: a branched forward disagrees with a recomputed one.
        CompileError: torch_compile is asked for and a model cannot be compiled as one graph.
    """

    @accepts_engine_options
    @without_autocast()
    def __init__(
        self,
        lm: PreTrainedModel,
        rm: RewardLike | Mapping[str, RewardLike],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        logits_processor: processors.Choice = None,
        **options: Any,
    ) -> None:
        self.options = EngineOptions.take(options)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        if isinstance(lm, torch.nn.Module):
            lm = adapters.merged_copy(lm) if adapters.has_adapter(lm) else lm
            lm.eval()
        backbone = Backbone(lm, "language model", fused=self.options.fused_layers)
        self.device = backbone.device
        named = NamedRewards.of(rm)
        self._rewards, self.reward_names = named.rewards, named.names
        for reward in self._rewards.values():
            reward.attach(backbone, tokenizer)
        logits_processor = processors.check(lm, logits_processor)
        drafts = load_drafts(self.options.draft, backbone, tokenizer, self._rewards)
        lookahead = False if drafts else self.options.lookahead
        ahead = lookahead_rows(backbone, {r.device for r in self._rewards.values()}, lookahead)
        joined = joined_rows(backbone, self._rewards.values(), lookahead)
        prove_language_model(backbone, self.options.compile_mode, looks_ahead=ahead + joined > 0)
        if self.options.compile_mode is not None:
            for reward in self._rewards.values():
                reward.compile(self.options.compile_mode)
        readers = [backbone.layout, *(r.layout for r in self._rewards.values() if r.layout)]
        rows = self.options.max_batch_size
        memory = self.options.memory_fraction, self.options.cache_bytes
        self.engine = Engine(
            backbone,
            self._rewards,
            pages=pages_within(readers, backbone.max_length, rows, *memory),
            rows=rows,
            graphs=self.options.cuda_graphs,
            lookahead=ahead,
            joined=joined,
            eager=bool(logits_processor),
            drafts=drafts,
        )
        processing = partial(processors.for_request, lm, logits_processor)
        self._encoder = Encoder(backbone, named, tokenizer, processing)

    def __reduce__(self) -> NoReturn:
        raise DecoderBusyError(
            "an ArgsDecoder cannot be copied or pickled: it owns the memory of its models. Make "
            "one in each process, from the models' paths"
        )

    @classmethod
    @accepts_engine_options
    def from_pretrained(
        cls,
        lm: str | Path,
        rm: str | Path | RewardLike | Mapping[str, Any],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        lm_quantization: str | None = None,
        rm_quantization: str | None = None,
        lm_device: str | torch.device | None = None,
        rm_device: str | torch.device | None = None,
        tokenizers: str = "alike",
        logits_processor: processors.Choice = None,
        **options: Any,
    ) -> "ArgsDecoder":
        """Load a pair from paths or hub ids (safetensors only).

        Args:
            lm: the language model, or a LoRA adapter of one.
            rm: a path, which is taken as what is there (``args_fast.rewards.load``); an object that
                stands for a reward; or several of these by name, each of which may be ``{"path":
                ..., "weight": ...}`` with options of ``rewards.load``, or ``{"function":
                "module:name"}``.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...
            dtype: "auto" (the checkpoint's on CUDA, float32 on the CPU), "float32", "bfloat16",
                "float16", or a torch.dtype.
            trust_remote_code: run code that comes with the models; off unless asked for.
            lm_quantization, rm_quantization: "int8" or "fp8" weights for the linear layers of that
                model, through torchao; None for the weights as they are. The reward head stays.
            lm_device, rm_device: of one model, in place of ``device``: two GPUs, one model each.
            tokenizers: "strict" refuses a pair whose vocabularies are not identical.
            logits_processor, options: as for the constructor.

        Raises:
            ConfigError, and what the constructor raises.
        """
        EngineOptions.take(options)  # before anything is loaded
        lm_on = loading.resolve_device(device if lm_device is None else lm_device)
        rm_on = loading.resolve_device(device if rm_device is None else rm_device)
        kind = loading.resolve_dtype(dtype, lm_on)
        quantization.check(lm_quantization, "lm_quantization", lm_on)
        quantization.check(rm_quantization, "rm_quantization", rm_on)
        trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        tokenizer = loading.load_tokenizer(lm, **trust)
        language_model = loading.load_lm(lm, lm_on, kind, **trust)
        quantization.prepare(language_model, lm_quantization, head=True)
        reward = load_rewards(
            rm,
            tokenizer=tokenizer,
            device=rm_on,
            dtype=kind,
            tokenizers=tokenizers,
            quantization=rm_quantization,
            **trust,
        )
        return cls(
            language_model,
            reward,
            tokenizer=tokenizer,
            logits_processor=logits_processor,
            **options,
        )

    # ---- decoding ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodingConfig | Sequence[DecodingConfig] | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]:
        """Decode one prompt or many.

        Args:
            prompts: one prompt or a list of them. A prompt is a text, which is decoded as it is; a
                list of ids, or what a tokenizer returns; or a conversation (a list of messages),
                which the chat template turns into text.
            config: the options, of all prompts or one for each; None for ``DecodingConfig()``.
            progress: show a bar on standard error, with tokens per second and the mean reward.

        Returns:
            One Generation per prompt, in order (a list of one for a single prompt);
            ``num_return_sequences`` of them per prompt where that is more than one. Each gets the
            tokens it would get alone.

        Raises:
            PromptError, LengthError, ConfigError: before any work is done.
            NonFiniteError: a model produced a NaN or infinite value.
            RewardError: a reward could not be had.
            DecoderBusyError: an AsyncArgsDecoder has this decoder.
        """
        split = self._encoder.split(prompts)
        configs = self.configs(config, len(split))
        groups = [self.requests(*pair) for pair in zip(split, configs, strict=True)]
        with Progress(len(groups), shown=progress) as bar, closing(self._run(groups, bar)) as run:
            for _, result in run:
                if isinstance(result, ArgsError):
                    raise result
        return [request.generation() for group in groups for request in group]

    @overload
    def chat(  # type: ignore[overload-overlap]  # a str is a list of str, too; it comes first
        self,
        messages: str | Conversation,
        config: DecodingConfig | None = None,
        *,
        progress: bool = False,
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: Sequence[str | Conversation],
        config: DecodingConfig | Sequence[DecodingConfig] | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]: ...

    def chat(
        self,
        messages: str | Conversation | Sequence[str | Conversation],
        config: DecodingConfig | Sequence[DecodingConfig] | None = None,
        *,
        progress: bool = False,
    ) -> Generation | list[Generation]:
        """Answer one conversation or many, through the tokenizer's chat template.

        Args:
            messages: a list of messages like ``{"role": "user", "content": "Hi"}``, a text for one
                such message, or a list of those. A last message of the assistant is continued.
            config, progress: as for ``generate``.

        Returns:
            The Generation of one conversation, or the list of Generations of a list of them.

        Raises:
            PromptError: there is no chat template, or it refuses the conversation; else as for
            ``generate``.
        """
        talks, alone = conversations(messages)
        configs = configs_for(config, len(talks))
        if alone and configs[0].num_return_sequences != 1:
            raise ConfigError(
                f"num_return_sequences is {configs[0].num_return_sequences}, and one conversation "
                "gives one Generation; chat([messages], config) gives a list"
            )
        results = self.generate(talks, configs, progress=progress)
        return results[0] if alone else results

    def complete(
        self, requests: Iterable[tuple[Prompt, DecodingConfig]]
    ) -> Iterator[tuple[int, Generation | ArgsError]]:
        """Decode a stream of requests of any length, in bounded memory.

        Args:
            requests: prompts with their options; taken as there is room for them, never more than
                ``max_batch_size`` ahead of those that decode. That many are read before anything is
                decoded: what writes them must not wait for an answer first.

        Yields:
            (index of the request, its generation), as they finish. Where a request has
            ``num_return_sequences`` above one, that many come together, in order of their seeds.
            A request that cannot be decoded gives the error that ``generate`` would raise, and the
            others continue.
        """
        groups = (self._requests_or_error(*request) for request in requests)
        with closing(self._run(groups, None)) as run:
            for index, result in run:
                if isinstance(result, ArgsError):
                    yield index, result
                else:
                    for request in result:
                        yield index, request.generation()

    def stream(self, prompt: Prompt, config: DecodingConfig | None = None) -> Iterator[Token]:
        """Decode one prompt and yield its tokens as they are chosen; the pieces of text add up to
        ``Generation.text``. Arguments and errors as for ``generate``. Closing the iterator frees
        its pages."""
        return self._stream(self.single_request(prompt, configs_for(config, 1)[0]))

    # ---- scores of given texts -----------------------------------------------------------------

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[list[float]]:
        """The language model's log p(token | tokens before it) of each token of each prompt; NaN
        for the first token, which nothing precedes."""
        split = self._encoder.split(prompts)
        return [self.engine.score(self._encoder.ids(prompt)) for prompt in split]

    def rewards(
        self, prompts: Prompt | Sequence[Prompt], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """r([x, y]) of finished texts, read at the last token of each prompt with its continuation
        (ids): what greedy generations are judged by, which carry no rewards of their own."""
        split = self._encoder.split(prompts)
        if len(continuations) != len(split):
            count = len(continuations)
            raise PromptError(f"there are {len(split)} prompts, but {count} continuations")
        pairs = map(self._finished, split, continuations)
        return [self.engine.rewards_along(*pair, at_end=True)[0] for pair in pairs]

    def token_rewards(self, prompt: Prompt, continuation: Sequence[int]) -> list[float]:
        """r([x, y]) after every token of a continuation (ids, at least one)."""
        return self.engine.rewards_along(*self._finished(prompt, continuation))

    def agreement(self, prompt: Prompt, tokens: Sequence[int], config: DecodingConfig) -> float:
        """The share of a text's tokens (ids) that ARGS itself would choose after those before them,
        with this config (of one sample) but for ``every`` and ``certain``: how near such an
        approximation comes. It costs about as much as decoding the text."""
        tokens = self._encoder.check(tokens, "the text")
        if not tokens:
            raise PromptError("the text is empty; give at least one id")
        new = max(len(tokens), config.max_new_tokens)
        exact = replace(config, every=1, certain=None, max_new_tokens=new, num_return_sequences=1)
        choices = choices_along(self.engine, lambda: self.single_request(prompt, exact), tokens)
        return sum(a == b for a, b in zip(choices, tokens, strict=True)) / len(tokens)

    # ---- what it holds -------------------------------------------------------------------------

    @property
    def cache(self) -> CacheUse:
        """How much fits, how much is in use, and how much of the prompts was shared."""
        return self.engine.cache_use

    @property
    def max_batch_size(self) -> int:
        """Requests decoded together at most."""
        return self.options.max_batch_size

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that proposes; use it as usual, between decodes. Loaded in float32 from a
        checkpoint in 16 bits, its linear layers keep these (``CompactLinear``)."""
        return self.engine.lm.model

    @property
    def reward_model(self) -> PreTrainedModel:
        """The model that judges; of an adapter on the language model's own weights, a merged copy
        that is made for the call. Raises ConfigError where the reward is not one model."""
        models = [r for r in self._rewards.values() if isinstance(r, Classifier)]
        if len(models) != 1:
            raise ConfigError(
                f"this decoder has {len(models)} reward models; use the objects that it was given"
            )
        return models[0].whole_model()

    # ---- requests, for the front ends of this package ------------------------------------------

    def configs(
        self, config: DecodingConfig | Sequence[DecodingConfig] | None, count: int
    ) -> Sequence[DecodingConfig]:
        """One config for each of ``count`` prompts."""
        return configs_for(config, count)

    def split(self, prompts: Prompt | Sequence[Prompt]) -> list[Plain]:
        """One prompt or many -> a list of them."""
        return self._encoder.split(prompts)

    def requests(self, prompt: Prompt, config: DecodingConfig) -> list[Request]:
        """One request per sample of a prompt. Raises what ``generate`` raises before any work."""
        requests = self._encoder.requests(prompt, config)
        for request in requests:
            self.engine.check(request)
        return requests

    def single_request(self, prompt: Prompt, config: DecodingConfig) -> Request:
        """The request of a stream: one prompt, one sample."""
        prompts = self._encoder.split(prompt)
        if len(prompts) != 1:
            raise PromptError(f"stream decodes one prompt, {len(prompts)} were given; use generate")
        if config.num_return_sequences != 1:
            raise ConfigError(
                f"num_return_sequences is {config.num_return_sequences}; a stream is of one "
                "sample. Use generate, or several streams with seeds of their own."
            )
        return self.requests(prompts[0], config)[0]

    def _finished(self, prompt: Prompt, continuation: Sequence[int]) -> tuple[Request, list[int]]:
        """The request of its prompt, and its continuation's ids."""
        if not len(continuation):
            raise PromptError("the continuation is empty; give at least one id")
        ids = self._encoder.check(continuation, "the continuation")
        config = DecodingConfig(k=2, max_new_tokens=len(ids))
        return self._encoder.requests(prompt, config)[0], ids

    def _requests_or_error(
        self, prompt: Prompt, config: DecodingConfig
    ) -> list[Request] | ArgsError:
        try:
            return self.requests(prompt, config)
        except ArgsError as error:
            return error

    def _run(
        self, groups: Iterable[list[Request] | ArgsError], bar: Progress | None
    ) -> Generator[tuple[int, list[Request] | ArgsError], None, None]:
        """Decode groups of requests; yields each group with its index once all of it is decoded, or
        the error of the first of it that failed."""
        under_way: dict[int, list[Request]] = {}
        coming = enumerate(groups)
        try:
            while True:
                while self.engine.waiting < self.max_batch_size:
                    index, group = next(coming, (-1, None))
                    if group is None:
                        break
                    if isinstance(group, ArgsError):
                        yield index, group
                        continue
                    under_way[index] = group
                    for request in group:
                        self.engine.submit(request)
                if not under_way:
                    return
                self.engine.step()
                for index, group in list(under_way.items()):
                    error = next((r.error for r in group if r.error is not None), None)
                    finished = error is not None or all(r.finished for r in group)
                    if bar is not None:
                        bar.update(group, finished=finished)
                    if not finished:
                        continue
                    self._cancel(under_way.pop(index))
                    if error is not None and not isinstance(error, ArgsError):
                        raise error
                    yield index, group if error is None else error
        finally:
            for group in under_way.values():
                self._cancel(group)

    def _stream(self, request: Request) -> Iterator[Token]:
        self.engine.submit(request)
        try:
            while True:
                # Another thread, or another stream, may bring tokens of this one at any time.
                finished = request.finished
                if new := request.take():
                    yield from new
                elif request.error is not None:
                    raise request.error
                elif finished:
                    return
                else:
                    self.engine.step()
        finally:
            self._cancel([request])

    def _cancel(self, requests: list[Request]) -> None:
        for request in requests:
            self.engine.cancel(request)
