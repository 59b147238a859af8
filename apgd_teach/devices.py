"""Where tensors live: one rule for the whole package."""

from __future__ import annotations

import torch

from apgd_teach.errors import ApgdTeachError

__all__ = ["describe_device", "pick_device", "wait_for"]


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" takes CUDA where there is one, else Apple's MPS, else the CPU; anything else is what PyTorch
            calls a device ("cpu", "cuda:1", "mps").

    Raises:
        ApgdTeachError: the name is no device, or this machine has none of that kind or number.

    Lesson: 00.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    nothing = f"{device!r} is not a device; use 'auto', 'cpu', 'cuda' or 'mps'."
    if not isinstance(device, str | torch.device):
        # PyTorch takes a bare number for the number of an accelerator.
        raise ApgdTeachError(nothing)
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ApgdTeachError(nothing) from None
    if chosen.type == "meta":
        raise ApgdTeachError("the device 'meta' holds shapes and no values; use 'auto' or 'cpu'.")
    if not _is_here(chosen):
        raise ApgdTeachError(f"this machine has no device '{chosen}'; use 'auto' or 'cpu'.")
    return chosen


def _is_here(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    try:
        torch.empty(0, device=device)
    except (AssertionError, ImportError, RuntimeError):  # what PyTorch raises for kinds that it was not built for
        return False
    return True


def describe_device(device: torch.device) -> str:
    """A device in words: "cpu, 2 threads" or "cuda, NVIDIA L4"."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'' if threads == 1 else 's'}"
    return device.type


def wait_for(device: torch.device) -> None:
    """Until an accelerator has done what it was told: without this a clock reads how long the telling took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
