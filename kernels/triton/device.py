"""What the launchers ask of a device, and where each is known not to run."""

import torch

OLDEST = (8, 0)  # Ampere: bfloat16 in the tensor cores, and copies past the registers


def machine(device: torch.device) -> tuple[tuple[int, int], int]:
    """The compute capability and the multiprocessors of a device; of a small GPU for the
    interpreter, which works on tensors of the CPU."""
    if device.type == "cpu":
        return OLDEST, 8
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def tuned(tuning: dict[tuple[int, int], dict], capability: tuple[int, int]) -> dict:
    """The entry of the newest architecture that is not newer than the device."""
    return tuning[max(known for known in tuning if known <= capability)]


def too_old(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, or None."""
    capability, _ = machine(device)
    if capability >= OLDEST:
        return None
    return f"it needs compute capability 8.0 or above, and the device has {capability}"
