"""A soak of the server: traffic of every kind for as long as is asked, and every answer checked.

    python tests/soak/run.py --seconds 120
    python tests/soak/run.py --seconds 3600 --cases 300 --log bench/results/soak

Requests of mixed sizes, options and rewards, clients that leave, requests that must be refused, and
two kills of the process with a supervisor that starts it again. Each answer is compared with what
its request gives when it is decoded alone. It fails for a wrong token, for a request that gets
neither an answer nor an error, for a process that ends on its own, and for memory that grows by
more than 2 %.
"""

import argparse
import asyncio
import json
import random
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import make_cases
from clients import Clients
from models import make_decoder
from supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
GROWTH = 0.02  # of memory, at most
LAST_KILL = 0.25  # share of the time


def free_port() -> int:
    """A port that no one listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def memory(
    resident: list[tuple[float, int]], answered: list[float], cases: int
) -> dict[str, Any] | None:
    """The memory of the last process after its warm-up and at the end, with its growth, and the
    whole curve. None where it has not answered twice as many requests as there are distinct ones.

    The warm-up is a third of its time, and that many answers. Tokenizers remember words, rewards
    prompts, and malloc's arenas find their size: all of it ends once no request is new.
    """
    began, end = resident[0][0], resident[-1][0]
    since = [at for at in answered if at >= began]
    if len(since) <= 2 * cases:
        return None
    warm_at = max(since[2 * cases], began + (end - began) / 3)
    warm = [rss for at, rss in resident if at >= warm_at]
    tenth = max(1, len(warm) // 10)
    early, late = max(warm[:tenth]), max(warm[-tenth:])
    sixtieth = max(1, len(resident) // 60)
    return {
        "warm_up_seconds": round(warm_at - began),
        "after_warm_up_mib": mib(early),
        "at_the_end_mib": mib(late),
        "growth": round(late / early - 1, 4),
        "curve": [[round(at - began), mib(rss)] for at, rss in resident[::sixtieth]],
    }


def mib(size: int) -> float:
    """Bytes in MiB, as results have them."""
    return round(size / 2**20, 1)


async def soak(given: argparse.Namespace, cases: list, say: Any) -> dict[str, Any]:
    """Traffic for the time that was asked for; returns what came of it."""
    build = ROOT / "build" / "soak"
    build.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(free_port(), build / "server.log")
    supervising = asyncio.ensure_future(supervisor.run())
    try:
        await asyncio.wait_for(supervisor.ready(), 120)
        result = await traffic(given, cases, supervisor, say)
    finally:
        status = await supervisor.stop()
        await supervising
    return result | {"exit_status": status}


async def traffic(
    given: argparse.Namespace, cases: list, supervisor: Supervisor, say: Any
) -> dict[str, Any]:
    """What came of all clients."""
    began = time.monotonic()
    end = began + given.seconds
    clients = Clients(supervisor, cases, random.Random(given.seed), say)
    kills = [began + LAST_KILL * given.seconds * share for share in (0.5, 1.0)]
    async with clients:
        working = [asyncio.ensure_future(clients.work(end)) for _ in range(given.clients)]
        noted = began
        while time.monotonic() < end:
            await asyncio.sleep(0.5)
            if kills and time.monotonic() > kills[0]:
                kills.pop(0)
                await supervisor.ready()
                supervisor.kill()
                say("killed the server")
            if time.monotonic() - noted > max(10, given.seconds / 60):
                noted = time.monotonic()
                rss = supervisor.resident[-1][1] / 2**20 if supervisor.resident else 0
                say(f"{noted - began:.0f} s, {rss:.0f} MiB, {json.dumps(clients.counts)}")
        await asyncio.gather(*working)
        left = await clients.left_over()
    return {
        "seconds": round(time.monotonic() - began),
        "clients": given.clients,
        "distinct_requests": len(cases),
        "too_close_to_tell": sum(case.ties for case in cases),
        "counts": dict(sorted(clients.counts.items())),
        "kills": supervisor.kills,
        "deaths": supervisor.deaths,
        "left_over": left,
        "memory": memory(supervisor.resident, clients.answered, len(cases)),
        "faults": clients.faults,
    }


def faults_of(result: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = list(result["faults"])
    if result["deaths"] != result["kills"]:
        found.append(f"the process ended {result['deaths']} times; {result['kills']} were kills")
    if result["memory"] is None:
        found.append("too few answers to judge the memory; give more --seconds or fewer --cases")
    elif result["memory"]["growth"] > GROWTH:
        found.append(f"memory grew by {result['memory']['growth']:.1%}")
    if any(result["left_over"].values()):
        found.append(f"when all clients had left: {result['left_over']}")
    if result["exit_status"] not in (0, -15):
        found.append(f"the server ended with {result['exit_status']} after SIGTERM")
    if not result["counts"].get("right"):
        found.append("no answer was checked")
    return found


def main() -> int:
    """Run the soak; the exit status is 1 where something was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--cases", type=int, default=60, help="distinct requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="folder for the log and the result")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "the prompt is text")
    torch.set_num_threads(1)
    log = None
    if given.log:
        given.log.mkdir(parents=True, exist_ok=True)
        log = (given.log / "soak.log").open("w", buffering=1)

    def say(text: str) -> None:
        for file in filter(None, (sys.stdout, log)):
            print(time.strftime("%H:%M:%S"), text, file=file, flush=True)

    began = time.monotonic()
    cases = make_cases(given.cases, given.seed, make_decoder())
    say(f"{len(cases)} requests decoded alone in {time.monotonic() - began:.0f} s")
    result = asyncio.run(soak(given, cases, say))
    result["faults"] = faults_of(result)
    shown = result | {"memory": {**(result["memory"] or {}), "curve": "in soak.json"}}
    say(json.dumps(shown))
    if given.log:
        (given.log / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    say("failed" if result["faults"] else "passed")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
