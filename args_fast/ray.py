"""The same job on Ray Data: one pair of models per actor, and Ray's own scheduling.

Actors read slices of the input, which has to lie under the same path on every machine, and hand
back finished records; the process that started the job writes them, as it does without Ray. An
actor that died is started again by Ray Data, and the slice that it had is decoded again.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from args_fast.errors import ArgsError, JobError
from args_fast.jobs.job import Job, Settings, decode_lines
from args_fast.jobs.journal import LineSet
from args_fast.jobs.lines import numbered
from args_fast.jobs.ownership import BLOCK
from args_fast.jobs.records import Finished

if TYPE_CHECKING:
    from args_fast import ArgsDecoder

SLICE = 256  # lines that an actor takes at a time, at most: so much is decoded again if it dies


@dataclass(frozen=True)
class Pair:
    """What an actor loads: the models' names, and the options of from_pretrained."""

    lm: str
    rm: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> "ArgsDecoder":
        from args_fast import ArgsDecoder

        return ArgsDecoder.from_pretrained(self.lm, self.rm, **self.options)


def start(device: str = "auto") -> str:
    """Join the cluster that RAY_ADDRESS names, or begin one on this machine.

    Args:
        device: "auto", "cuda" or "cpu"; which GPU an actor has is for Ray to say.

    Returns:
        "cuda" or "cpu": what the actors run on.

    Raises:
        JobError: Ray is not installed, or the cluster has no such device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise JobError(f"device is {device!r}; with --ray it must be auto, cuda or cpu")
    # Nothing is reported to Ray's makers unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ImportError as error:
        raise JobError(
            f"--ray needs Ray Data ({error}); install it with: pip install 'args-fast[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Says that Ray's own progress bars are off, as if that were a fault.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    has_gpus = bool(ray.cluster_resources().get("GPU"))
    if device == "cuda" and not has_gpus:
        raise JobError("device is 'cuda', but Ray's cluster has no GPU; use --device cpu")
    return "cuda" if has_gpus and device != "cpu" else "cpu"


def decode(job: Job, pair: Pair, actors: int | None = None) -> Iterator[Finished]:
    """The records that are missing from the output of the job, a slice at a time.

    Args:
        job: from a file.
        pair: the models.
        actors: how many load it; None for one per GPU, or one where there is none. They share
            the cluster's GPUs, or its processors, evenly.

    Raises:
        JobError: the input is piped in, or an actor cannot load the models or decode with them.
    """
    if job.path is None:
        raise JobError("actors read the input by themselves, so --ray needs a file, not a pipe")
    if not job.source.is_plain:
        raise JobError(
            f"actors read the input from the middle, so --ray needs a file of lines that is not "
            f"compressed; {job.path} is not one"
        )
    import ray.data

    kind = "GPU" if start(pair.options.get("device", "auto")) == "cuda" else "CPU"
    total = ray.cluster_resources()[kind]
    actors = actors or (int(total) if kind == "GPU" else 1)
    share = total / actors
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the job has its own
    context.execution_options.preserve_order = job.settings.ordered
    # Some slices for each actor, so that none waits for the others at the end.
    length = max(1, min(SLICE, (job.remaining or 0) // (4 * actors)))
    slices = list(_slices(job.path, job.output.done, length))
    if not slices:
        return iter(())
    rows = ray.data.from_items(slices, override_num_blocks=len(slices)).flat_map(
        Actor,
        fn_constructor_args=(pair, str(job.path.resolve()), job.settings),
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        **{f"num_{kind.lower()}s": int(share) if share >= 1 else share},
    )
    return map(_finished, rows.iter_rows())


class Actor:
    """A pair of models in a process of its own."""

    def __init__(self, pair: Pair, path: str, settings: Settings) -> None:
        self.path = Path(path)
        self.settings = settings
        # An error that is raised here would be tried again, and then reported with all of Ray's
        # words around it.
        self.failure: str | None = None
        try:
            self.decoder = pair.load()
        except (ArgsError, OSError, ValueError, ImportError) as error:
            self.failure = f"cannot load the models: {error}"

    def __call__(self, piece: dict[str, Any]) -> list[dict[str, Any]]:
        """The records of a slice, one row each."""
        failure = self.failure
        if failure is None:
            try:
                return [asdict(record) | {"failure": None} for record in self._records(piece)]
            except ArgsError as error:  # of the models, not of a line: that has its record
                failure = str(error)
        return [asdict(Finished(b"", True, 0, 0, 0.0)) | {"failure": failure}]

    def _records(self, piece: dict[str, Any]) -> Iterator[Finished]:
        skipped = frozenset(int(number) for number in piece["done"])
        with open(self.path, "rb") as stream:
            stream.seek(piece["offset"])
            within = takewhile(
                lambda numbered_line: numbered_line[0] < piece["end"],
                numbered(stream, piece["line"]),
            )
            lines = (line for line in within if line[0] not in skipped)
            yield from decode_lines(self.decoder, lines, self.settings)


def _finished(row: dict[str, Any]) -> Finished:
    failure = row.pop("failure")
    if failure is not None:
        raise JobError(f"an actor failed: {failure}")
    return Finished(**row)


def _slices(path: Path, done: LineSet, length: int) -> Iterator[dict[str, Any]]:
    """The input in pieces of ``length`` lines, less those that are done: byte offset, number of
    the first line and of the one after the last, and the lines within that have a record."""
    offset, line = 0, 1
    with open(path, "rb") as file:
        while True:
            begin, end = offset, line
            within = []
            while end - line < length and (size := _line_size(file)):
                if end in done:
                    within.append(end)
                offset += size
                end += 1
            if end == line:
                return
            if end - line > len(within):
                yield {"offset": begin, "line": line, "end": end, "done": within}
            line = end


def _line_size(file: BinaryIO) -> int:
    """Bytes of the next line, which may be of any length; 0 at the end."""
    size = 0
    while piece := file.readline(BLOCK):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size
