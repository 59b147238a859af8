"""Where tensors live: one rule for the whole package."""

from __future__ import annotations

import torch

from apgd_teach.errors import ApgdTeachError

__all__ = ["describe_device", "pick_device"]


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" takes CUDA where there is one, else Apple's MPS, else the CPU; anything else is what PyTorch
            calls a device ("cpu", "cuda:1", "mps").

    Raises:
        ApgdTeachError: the name is no device, or this machine has none of that kind.

    Lesson: 00.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ApgdTeachError(f"'{device}' is not a device; use 'auto', 'cpu', 'cuda' or 'mps'.") from None
    missing = (chosen.type == "cuda" and not torch.cuda.is_available()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ApgdTeachError(f"this machine has no '{chosen.type}' device; use 'auto' or 'cpu'.")
    return chosen


def describe_device(device: torch.device) -> str:
    """A device in words: "cpu, 2 threads" or "cuda, NVIDIA L4"."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return device.type
