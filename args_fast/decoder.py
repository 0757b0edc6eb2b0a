"""The public decoder: prompts in, reward-guided generations out."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from args_fast import quantization
from args_fast.config import DecodingConfig
from args_fast.encoding import Encoder, Prompt, check_length
from args_fast.engine.capacity import CacheUse, pages_within
from args_fast.engine.lookahead import most_rows
from args_fast.engine.request import Request
from args_fast.engine.scheduler import Scheduler
from args_fast.errors import ArgsError, ConfigError, PairMismatchError, PromptError
from args_fast.generation import Generation, Token
from args_fast.kvcache.storage import PAGE_SIZE
from args_fast.models import loading
from args_fast.models.backbone import Backbone
from args_fast.models.compiled import compile_mode
from args_fast.models.proof import prove
from args_fast.progress import Progress
from args_fast.rewards import BranchedClassifier


class ArgsDecoder:
    """Decodes with a language model guided by a reward model.

    Both models stay usable outside: their attention is the engine's only inside its own forward
    passes. Everything that is under way in one decoder (lists, streams) is decoded together. A
    decoder is not safe to use from two threads at once; ``AsyncArgsDecoder`` is for that.

    Args:
        lm: a causal language model of transformers.
        rm: a ``*ForSequenceClassification`` of transformers with one label that shares the
            language model's tokens; on the same device, or both on a CUDA device of their own.
        tokenizer: of both; None for ids in, ids out.
        max_batch_size: prompts decoded together at most; of longer lists others join as some end.
        memory_fraction: of a CUDA device's memory that models and caches may take.
        cache_bytes: of both models' caches, instead; None on the CPU is a quarter of the RAM that
            is available, of which only what is used becomes resident.
        cuda_graphs: replay decode steps as CUDA graphs (on one CUDA device only).
        lookahead: let the language model read all k candidates while the reward model judges them,
            so that its next logits are there when the choice is made. Same tokens; pays where more
            rows cost little. "auto": by the number of rows and the device
            (``args_fast.engine.lookahead``), never on the CPU.
        torch_compile: run both models' decode steps through torch.compile, in its default mode
            (True) or in "max-autotune-no-cudagraphs". It compiles at load and once more when
            there are several prompts, each time for as long as torch takes for the two models.

    Raises:
        UnsupportedModelError, RewardHeadError: a model cannot be driven by the engine.
        PairMismatchError: the two models cannot work on the same ids.
        ConfigError: an argument is outside its range.
        ProofError: a branched forward disagrees with a recomputed one.
        CompileError: torch_compile is asked for and a model cannot be compiled as one graph.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        rm: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_size: int = 64,
        memory_fraction: float = 0.9,
        cache_bytes: int | None = None,
        cuda_graphs: bool = True,
        lookahead: bool | str = "auto",
        torch_compile: bool | str = False,
    ) -> None:
        if lookahead not in (True, False, "auto"):
            raise ConfigError(f"lookahead is {lookahead!r}; it must be True, False or 'auto'")
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}; it must be at least 1")
        mode = compile_mode(torch_compile)
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        for model in (lm, rm):
            if isinstance(model, torch.nn.Module):
                model.eval()  # dropout would make every reward a lottery
        self._lm = Backbone(lm, "language model")
        self._rm = BranchedClassifier(rm)
        self.device = self._lm.device
        if self._rm.device.type != self.device.type:
            raise PairMismatchError(
                f"the language model is on {self.device} and the reward model on "
                f"{self._rm.device}; move both to one device, or to two CUDA devices"
            )
        if self._rm.vocabulary < self._lm.vocabulary:
            raise PairMismatchError(
                f"the language model can choose among {self._lm.vocabulary} ids, but the reward "
                f"model has embeddings for {self._rm.vocabulary}; use a pair that shares one "
                f"vocabulary, or rm.resize_token_embeddings({self._lm.vocabulary}) if the ids "
                "beyond are padding"
            )
        most = most_rows(self._lm, self._rm, lookahead)
        prove(self._lm, logits=True)
        prove(self._rm, logits=False)
        if mode is not None:
            self._lm.compile(mode)
            self._rm.compile(mode)
            # Again, as compiled: a compiler can be wrong too. These are the graphs that a single
            # prompt will need, so none is made for this alone.
            prove(self._lm, logits=True, branches=1)
            if most > 0:
                prove(self._lm, logits=True)
            prove(self._rm, logits=False)
        self._encoder = Encoder(self._lm, self._rm, tokenizer)
        self._scheduler = Scheduler(
            self._lm,
            self._rm,
            pages=pages_within(self._lm, self._rm, max_batch_size, memory_fraction, cache_bytes),
            rows=max_batch_size,
            graphs=cuda_graphs,
            lookahead=most,
        )

    @classmethod
    def from_pretrained(
        cls,
        lm: str | Path,
        rm: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        lm_quantization: str | None = None,
        rm_quantization: str | None = None,
        max_batch_size: int = 64,
        memory_fraction: float = 0.9,
        cache_bytes: int | None = None,
        cuda_graphs: bool = True,
        lookahead: bool | str = "auto",
        lm_device: str | torch.device | None = None,
        rm_device: str | torch.device | None = None,
        torch_compile: bool | str = False,
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
            max_batch_size, memory_fraction, cache_bytes, cuda_graphs, lookahead, torch_compile: as
                for the constructor.
            lm_device, rm_device: of one model, in place of ``device``: two GPUs, one model each.

        Raises:
            ConfigError, and what the constructor raises.
        """
        lm_at = loading.resolve_device(device if lm_device is None else lm_device)
        rm_at = loading.resolve_device(device if rm_device is None else rm_device)
        kind = loading.resolve_dtype(dtype, lm_at)
        quantization.check(lm_quantization, "lm_quantization", lm_at)
        quantization.check(rm_quantization, "rm_quantization", rm_at)
        options = {"trust_remote_code": trust_remote_code}
        tokenizer = loading.load_tokenizer(lm, **options)
        other = loading.load_tokenizer(rm, **options)
        if tokenizer is not None and other is not None:
            loading.check_tokenizers(tokenizer, other)
        language_model = loading.load_lm(lm, lm_at, kind, **options)
        quantization.quantize(language_model, lm_quantization)
        reward_model = loading.load_rm(rm, rm_at, kind, **options)
        quantization.quantize(reward_model.base_model, rm_quantization)
        return cls(
            language_model,
            reward_model,
            tokenizer=tokenizer,
            max_batch_size=max_batch_size,
            memory_fraction=memory_fraction,
            cache_bytes=cache_bytes,
            cuda_graphs=cuda_graphs,
            lookahead=lookahead,
            torch_compile=torch_compile,
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: DecodingConfig | Sequence[DecodingConfig] | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]:
        """Decode one prompt or many.

        Args:
            prompts: str, list of str, list of ids, or list of lists of ids.
            config: the options, of all prompts or one for each; None for ``DecodingConfig()``.
            progress: show a bar on standard error, with tokens per second and the mean reward.

        Returns:
            One Generation per prompt, in order (a list of one for a single prompt);
            ``num_return_sequences`` of them per prompt where that is more than one. Each gets the
            tokens it would get alone.

        Raises:
            PromptError, LengthError, ConfigError: before any work is done.
            NonFiniteError: a model produced a NaN or infinite value.
        """
        each = self._encoder.split(prompts)
        configs = self._configs(config, len(each))
        groups = [self._sequences(*request) for request in zip(each, configs, strict=True)]
        with Progress(len(groups), shown=progress) as bar, closing(self._run(groups, bar)) as run:
            for _, result in run:
                if isinstance(result, ArgsError):
                    raise result
        return [sequence.generation() for group in groups for sequence in group]

    def complete(
        self, requests: Iterable[tuple[Prompt, DecodingConfig]]
    ) -> Iterator[tuple[int, Generation | ArgsError]]:
        """Decode a stream of requests of any length, in bounded memory.

        Args:
            requests: prompts with their options; taken as there is room for them, never more than
                ``max_batch_size`` ahead of those that decode. So many are read before anything is
                decoded: whoever writes them must not wait for an answer first.

        Yields:
            (index of the request, its generation), as they come to their ends. Where a request has
            ``num_return_sequences`` above one there are so many in a row, in the order of their
            seeds. A request that cannot be decoded gives the error that ``generate`` would raise,
            and the others go on.
        """
        groups = (self._sequences_or_error(*request) for request in requests)
        with closing(self._run(groups, None)) as run:
            for index, result in run:
                if isinstance(result, ArgsError):
                    yield index, result
                else:
                    for sequence in result:
                        yield index, sequence.generation()

    def stream(self, prompt: Prompt, config: DecodingConfig | None = None) -> Iterator[Token]:
        """Decode one prompt and yield its tokens as they are chosen; the pieces of text add up to
        ``Generation.text``. Arguments and errors as for ``generate``. Closing the iterator frees
        its pages."""
        return self._stream(self._only(prompt, config or DecodingConfig()))

    @property
    def cache(self) -> CacheUse:
        """How much fits, how much is in use, and how much of the prompts was shared."""
        pool, served = self._scheduler.pool, self._scheduler.served
        return CacheUse(
            tokens=pool.size * PAGE_SIZE,
            bytes=sum(2 * cache.k_pages.nbytes for cache in self._scheduler.caches),
            pages=pool.size,
            pages_in_use=pool.pages_in_use,
            page_size=PAGE_SIZE,
            prompt_tokens=served.prompt_tokens,
            shared_tokens=served.shared_tokens,
            preemptions=served.preemptions,
        )

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
        each = self._encoder.split(prompts)
        if len(continuations) != len(each):
            raise PromptError(
                f"there are {len(each)} prompts, but {len(continuations)} continuations"
            )
        encoded = zip(map(self._encoder.ids, each), continuations, strict=True)
        return [self._rewards_along(x, y)[-1] for x, y in encoded]

    @torch.inference_mode()
    def token_rewards(self, prompt: Prompt, continuation: Sequence[int]) -> list[float]:
        """r([x, y]) after every token of a continuation (ids)."""
        ids = self._encoder.ids(prompt)
        return self._rewards_along(ids, continuation)[len(ids) :]

    def _rewards_along(self, prompt: list[int], continuation: Sequence[int]) -> list[float]:
        """The reward model is causal: its head at a token judges the text that ends there."""
        self._encoder.check(continuation, "the continuation")
        check_length(self._rm, len(prompt), len(continuation))
        text = torch.tensor([[*prompt, *continuation]], device=self._rm.device)
        hidden = self._rm.model.base_model(input_ids=text, use_cache=False).last_hidden_state
        return self._rm.reward(hidden[0]).tolist()

    # ---- requests ------------------------------------------------------------------------------

    def _configs(
        self, config: DecodingConfig | Sequence[DecodingConfig] | None, count: int
    ) -> Sequence[DecodingConfig]:
        if config is None or isinstance(config, DecodingConfig):
            return [config or DecodingConfig()] * count
        if len(config) != count:
            raise ConfigError(
                f"config is a list of {len(config)} for {count} prompts; give one for each, or one "
                "for all"
            )
        return config

    def _sequences(self, prompt: Prompt, config: DecodingConfig) -> list[Request]:
        """Raises what ``generate`` raises before any work is done."""
        sequences = self._encoder.sequences(prompt, config)
        self._scheduler.check(sequences[0])
        return sequences

    def _sequences_or_error(
        self, prompt: Prompt, config: DecodingConfig
    ) -> list[Request] | ArgsError:
        try:
            return self._sequences(prompt, config)
        except ArgsError as error:
            return error

    def _only(self, prompt: Prompt, config: DecodingConfig) -> Request:
        prompts = self._encoder.split(prompt)
        if len(prompts) != 1:
            raise PromptError(f"stream decodes one prompt, {len(prompts)} were given; use generate")
        if config.num_return_sequences != 1:
            raise ConfigError(
                f"num_return_sequences is {config.num_return_sequences}; a stream is of one "
                "sample. Use generate, or several streams with seeds of their own."
            )
        return self._sequences(prompts[0], config)[0]

    # ---- decoding ------------------------------------------------------------------------------

    def _run(
        self, groups: Iterable[list[Request] | ArgsError], bar: Progress | None
    ) -> Generator[tuple[int, list[Request] | ArgsError], None, None]:
        """Decode groups of sequences; yields each with its index once all of it is decoded, or once
        one of it has failed."""
        under_way: dict[int, list[Request]] = {}
        coming = enumerate(groups)
        try:
            while True:
                while self._scheduler.waiting < self.max_batch_size:
                    index, group = next(coming, (-1, None))
                    if group is None:
                        break
                    if isinstance(group, ArgsError):
                        yield index, group
                        continue
                    under_way[index] = group
                    for sequence in group:
                        self._scheduler.submit(sequence)
                if not under_way:
                    return
                self._scheduler.step()
                for index, group in list(under_way.items()):
                    error = next((s.error for s in group if s.error is not None), None)
                    over = error is not None or all(s.over for s in group)
                    if bar is not None:
                        bar.update(group, over=over)
                    if not over:
                        continue
                    self._cancel(under_way.pop(index))
                    if error is not None and not isinstance(error, ArgsError):
                        raise error
                    yield index, group if error is None else error
        finally:
            for group in under_way.values():
                self._cancel(group)

    def _stream(self, sequence: Request) -> Iterator[Token]:
        self._scheduler.submit(sequence)
        try:
            while True:
                # Others who wait for theirs may bring tokens of ours while the caller has control.
                while new := sequence.take():
                    yield from new
                if sequence.error is not None:
                    raise sequence.error
                if sequence.over:
                    return
                self._scheduler.step()
        finally:
            self._cancel([sequence])

    def _cancel(self, sequences: list[Request]) -> None:
        for sequence in sequences:
            if not sequence.over:
                self._scheduler.cancel(sequence)
