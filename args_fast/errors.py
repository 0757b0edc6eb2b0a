"""Everything args-fast raises on purpose. Each says what was given, what is allowed, what to do.

Every class is an ArgsError and the built-in kind that a caller would expect.
"""


class ArgsError(Exception):
    """The base of all errors of this package."""


class ConfigError(ArgsError, ValueError):
    """A decoding option is outside its range, alone or for this pair of models."""


class PromptError(ArgsError, ValueError):
    """A prompt is empty, of the wrong kind, or holds ids outside the vocabulary."""


class LengthError(ArgsError, ValueError):
    """Prompt and new tokens together do not fit one of the models."""


class CapacityError(LengthError):
    """Prompt and new tokens together do not fit the cache, even alone."""


class LoadError(ArgsError, OSError):
    """A model or tokenizer cannot be loaded: not there, damaged, incomplete, or of another kind."""


class UnsupportedModelError(ArgsError, ValueError):
    """A model cannot be driven: its attention or its state is not ours to store."""


class RewardHeadError(UnsupportedModelError):
    """The reward model does not give the value of one linear head as its reward."""


class PairMismatchError(ArgsError, ValueError):
    """The language model and the reward model do not share tokens, or a device."""


class ProofError(ArgsError, RuntimeError):
    """A branched forward disagrees with a recomputed one: the model's tokens would be wrong."""


class CompileError(ArgsError, RuntimeError):
    """torch.compile was asked for and cannot make one graph of a model."""


class NonFiniteError(ArgsError, ArithmeticError):
    """A model produced a NaN or infinite logit or reward while decoding."""


class DecoderBusyError(ArgsError, RuntimeError):
    """A decoder was used from where it must not be: next to the AsyncArgsDecoder that has it, or
    after a fork."""


class RewardError(ArgsError, RuntimeError):
    """A reward could not be had for one request: that request ends."""


class DecoderClosedError(ArgsError, RuntimeError):
    """A decoder was asked for something after its end, or closed before it had answered."""


class BackendError(ArgsError, RuntimeError):
    """A forced backend does not exist here."""


class MissingPackageError(ArgsError, ImportError):
    """An optional package that was asked for is not installed."""


class LineError(ArgsError, ValueError):
    """A line of a job's input is not a request."""


class JobError(ArgsError, ValueError):
    """A job cannot read, write or resume where it was asked to."""


class EvaluationError(ArgsError, ValueError):
    """An evaluation cannot read its data, methods or judges, or cannot resume where it was asked
    to."""
