"""The same application on Ray Serve: replicas with an engine each, and Ray's own routing.

Ray sends a request to the replica with the shorter queue of two picked at random, restarts a
replica whose engine has stopped, and, given a range of replicas, follows the load.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from args_fast.errors import ConfigError
from args_fast.serve.options import ServerOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

SCRAPES = 32  # places of a replica beyond its decoding ones, for /health, /metrics and the like


@dataclass(frozen=True)
class ServedPair:
    """What a replica loads: the models' names, and options of ``ArgsDecoder.from_pretrained``."""

    lm: str
    rm: str
    options: dict[str, Any] = field(default_factory=dict)

    def application(self, options: ServerOptions) -> "FastAPI":
        """Load the models, and make their application."""
        from args_fast import ArgsDecoder
        from args_fast.serve import logs
        from args_fast.serve.app import create_app
        from args_fast.serve.engine_view import EngineView

        logs.set_up()
        decoder = ArgsDecoder.from_pretrained(self.lm, self.rm, **self.options)
        engine = EngineView(
            decoder, max_waiting=options.max_waiting, max_model_len=options.max_model_len
        )
        return create_app(engine, options)


@dataclass(frozen=True)
class Scale:
    """How many replicas, and what each has.

    Args:
        minimum, maximum: number of replicas; where they differ, Ray follows the load.
        cpus, gpus: of one replica.
    """

    minimum: int
    maximum: int
    cpus: float
    gpus: int

    @classmethod
    def parse(cls, replicas: str, cpus: float, gpus: int) -> "Scale":
        """``"2"`` or ``"1:4"`` replicas. Raises ConfigError."""
        low, _, high = replicas.partition(":")
        try:
            minimum, maximum = int(low), int(high or low)
        except ValueError:
            minimum, maximum = 0, 0
        if not 1 <= minimum <= maximum:
            raise ConfigError(
                f"replicas is {replicas!r}; it must be a number such as 2, or a range such as 1:4"
            )
        return cls(minimum, maximum, cpus, gpus)


def start(device: str) -> int:
    """Join the cluster that RAY_ADDRESS names, or begin one on this machine.

    Args:
        device: "auto", "cuda" or "cpu"; which GPU a replica has is Ray's to say.

    Returns:
        Number of GPUs that each replica gets: 1 or 0.

    Raises:
        ConfigError: Ray is not installed, or the cluster has no such device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"device is {device!r}; with --ray it must be auto, cuda or cpu")
    # Nothing is reported to Ray's makers unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.serve
    except ImportError as error:
        raise ConfigError(
            f"--ray needs Ray Serve ({error}); install it with: pip install 'args-fast[serve,ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(logging_level="warning")
    has_gpus = bool(ray.cluster_resources().get("GPU"))
    if device == "cuda" and not has_gpus:
        raise ConfigError("device is 'cuda', but Ray's cluster has no GPU; use --device cpu")
    return int(has_gpus and device != "cpu")


def deployment(pair: ServedPair, options: ServerOptions, scale: Scale) -> Any:
    """The Ray Serve application, for ``ray.serve.run``."""
    from ray import serve

    def build() -> "FastAPI":
        return pair.application(options)

    class ArgsServer:
        def check_health(self) -> None:
            """Ray asks every few seconds, and restarts a replica that raises."""
            app: Any = self.app  # type: ignore[attr-defined]  # of Ray's ingress
            if not app.state.service.engine.alive:
                raise RuntimeError("the engine has stopped")

    batch = pair.options.get("max_batch_size", 64)
    replicas: dict[str, Any] = {"num_replicas": scale.minimum}
    if scale.maximum > scale.minimum:
        load = {"target_ongoing_requests": batch}
        limits = {"min_replicas": scale.minimum, "max_replicas": scale.maximum}
        replicas = {"autoscaling_config": limits | load}
    made = serve.deployment(
        name="args-fast",
        max_ongoing_requests=batch + options.max_waiting + SCRAPES,
        graceful_shutdown_timeout_s=options.drain_seconds,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        **replicas,
    )
    return made(serve.ingress(build)(ArgsServer)).bind()


def run(pair: ServedPair, options: ServerOptions, scale: Scale, *, host: str, port: int) -> None:
    """Deploy, and stay until a signal ends it."""
    from ray import serve

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(deployment(pair, options, scale), name="args-fast", blocking=True)
    finally:
        serve.shutdown()
