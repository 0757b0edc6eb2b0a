"""Models compute without gradients and in the types of their weights, whatever torch is asked for
around them."""

from contextlib import ContextDecorator, ExitStack

import torch

DEVICES = ("cpu", "cuda")


class without_autocast(ContextDecorator):  # used as torch.inference_mode is
    """Within it, or in the function that it decorates, torch.autocast is off: it would round what
    was proved without it."""

    def __enter__(self) -> None:
        self._entered = ExitStack()
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                self._entered.enter_context(torch.autocast(device, enabled=False))

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def _recreate_cm(self) -> "without_autocast":
        return type(self)()  # a decorated function may be called in several threads at once


class inference_mode(without_autocast):
    """torch.inference_mode without autocast."""

    def __enter__(self) -> None:
        super().__enter__()
        self._entered.enter_context(torch.inference_mode())
