"""An HTTP endpoint as a reward: python examples/rewards/endpoint.py http://localhost:9000/score

The endpoint takes {"prompts": [...], "responses": [...]} and gives {"rewards": [...]}. Connections
are kept from step to step: all calls run on one event loop. Decoding waits for every answer, so an
endpoint should be near, and take all texts of a step at once.
"""

import argparse

import httpx

from args_fast.rewards import Function


class Endpoint:
    """Asks a server for rewards. An answer other than success raises, and is tried again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: httpx.AsyncClient | None = None

    async def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        if self.client is None:
            self.client = httpx.AsyncClient(timeout=None)  # Function has a timeout of its own
        body = {"prompts": prompts, "responses": responses}
        answer = await self.client.post(self.url, json=body)
        answer.raise_for_status()
        return answer.json()["rewards"]


def endpoint(url: str) -> Function:
    """The reward that a server gives, 256 texts a request, with two more tries."""
    return Function(Endpoint(url), name="endpoint", batch_size=256, timeout=10.0, retries=2)


if __name__ == "__main__":
    from show import show

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the endpoint")
    show(endpoint(parser.parse_args().url), w=1.0)
