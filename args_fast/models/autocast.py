"""Models compute in the types of their weights, whatever the caller asks of torch around them."""

from contextlib import ContextDecorator, ExitStack

import torch

DEVICES = ("cpu", "cuda")


class without_autocast(ContextDecorator):  # used like torch.inference_mode
    """Within it, or in the function that it decorates, torch.autocast is off: it would round what
    was proved without it."""

    def __enter__(self) -> None:
        self._off = ExitStack()
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                self._off.enter_context(torch.autocast(device, enabled=False))

    def __exit__(self, *error: object) -> None:
        self._off.close()

    def _recreate_cm(self) -> "without_autocast":
        return without_autocast()  # a decorated function may be called in several threads at once
