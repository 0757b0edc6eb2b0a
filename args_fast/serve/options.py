"""What the operator of a server decides: every option with its default."""

from dataclasses import dataclass, field

from args_fast.config import DecodingConfig
from args_fast.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True)
class ServerOptions:
    """Options of one server.

    Args:
        model_names: names that requests may ask for; the first is the one that answers carry.
        api_keys: keys that clients may send as ``Authorization: Bearer KEY``; none means that
            every client is let in.
        max_model_len: tokens of a prompt and its answer together; None is what the models and the
            cache take.
        max_waiting: samples that may wait for their turn; a request beyond them gets a 429.
        max_body: bytes of a request's body.
        body_seconds: time in which a request's body has to arrive.
        limit_n: answers that a request may ask for per prompt (``n``).
        drain_seconds: time that requests under way get to finish after SIGTERM.
        log_prompts: put prompts and answers into the log. Off: no text of a user is written.
        defaults: ``k`` and ``w`` (and other fields of ``args``) of requests that do not set them.
        demonstration: whether the models are the embedded pair; the playground then says so.

    Raises:
        ConfigError: naming the option, its value and the allowed range.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_model_len: int | None = None
    max_waiting: int = 256
    max_body: int = 4 * MIB
    body_seconds: float = 60.0
    limit_n: int = 16
    drain_seconds: float = 30.0
    log_prompts: bool = False
    defaults: DecodingConfig = field(default_factory=DecodingConfig)
    demonstration: bool = False

    def __post_init__(self) -> None:
        if not (self.model_names and all(self.model_names)):
            raise ConfigError("the server's model has no name; give --served-model-name")
        if not all(key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise ConfigError(
                "an API key is empty or holds characters that a header cannot carry; use printable "
                "ASCII characters"
            )
        least = {"max_model_len": 2, "max_waiting": 0, "max_body": 1024, "limit_n": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}; it must be at least {low}")
        for name in ("body_seconds", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
