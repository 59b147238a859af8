"""State dicts as the mathematics sees them: task vectors, layer matrices, norms, and a fingerprint of the content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from apgd_teach.errors import MergeError

__all__ = [
    "StateDict",
    "as_matrix",
    "as_utf8",
    "as_written",
    "difference",
    "fingerprint",
    "norm",
    "relative_norm",
    "task_vectors",
    "wide",
]

StateDict: TypeAlias = Mapping[str, Tensor]


@contextmanager
def as_written() -> Iterator[None]:
    """Within this block, in this thread, what the caller has switched on does not change the arithmetic.

    No gradients are recorded, autocast does not lower the precision, and tensors are ordinary ones: those made in
    inference mode do not count how often they were written to.
    """
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def task_vectors(base: StateDict, experts: Mapping[str, StateDict]) -> dict[str, dict[str, Tensor]]:
    """τᵢ = θᵢ − θ₀ for every expert and every floating-point tensor.

    Args:
        base: θ₀, the state dict that the experts were fine-tuned from.
        experts: θᵢ by name, with the same keys and shapes as `base` (`preflight` says so in words if not).

    Returns:
        by expert, by tensor name: a new tensor of the base's shape, in the precision that merges compute in (float32,
        or float64 where the base is float64). Integer tensors (counters, position ids) have no task vector.

    Source: (1), (2) in docs/equations.md. Lesson: 01.
    """
    return {
        name: {key: difference(tensor, expert[key]) for key, tensor in base.items() if tensor.is_floating_point()}
        for name, expert in experts.items()
    }


def difference(base: Tensor, expert: Tensor) -> Tensor:
    """One tensor's τ, in float32 unless the base is float64: half-precision files are not subtracted as they are."""
    precision = torch.float64 if base.dtype == torch.float64 else torch.float32
    return expert.detach().to(precision) - base.detach().to(precision)


def as_matrix(tensor: Tensor) -> Tensor:
    """A weight as the matrix (out, in) that the method works on; a conv kernel becomes (out, in·kh·kw).

    Args:
        tensor: shape (out, …), at least two axes. The result is a view where PyTorch can make one.
    """
    return tensor.flatten(1)


def norm(tensor: Tensor) -> float:
    """‖tensor‖ (Frobenius), added up in float64 where the device has it, a part of the tensor at a time."""
    parts = tensor.detach().reshape(-1).split(1 << 20)
    return math.hypot(*(float(torch.linalg.vector_norm(wide(part))) for part in parts))


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float64, or in float32 on Apple's MPS, which has no wider floats."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def relative_norm(base: StateDict, expert: StateDict) -> float:
    """‖τ‖ / ‖θ₀‖ over all floating-point tensors together: how far fine-tuning went, as a share of the base.

    A few hundredths is the mild regime in which merging works; above about one, the expert has another base. It is
    infinite where the base is all zeros and the expert is not.

    Source: (20) in docs/equations.md. Lesson: 01, 02.
    """
    weights = [key for key, tensor in base.items() if tensor.is_floating_point()]
    moved = math.hypot(*(norm(difference(base[key], expert[key])) for key in weights))
    size = math.hypot(*(norm(base[key]) for key in weights))
    if size == 0:
        return math.inf if moved else 0.0
    return moved / size


def fingerprint(state_dict: StateDict) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and values, whatever the order of the keys and the device.

    Raises:
        MergeError: a name is no text that can be written.
    """
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        digest.update(as_utf8(key) + f"|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # Seen as bytes, since numpy has no bfloat16; a scalar must become a vector first.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def as_utf8(name: str) -> bytes:
    """A tensor's name as bytes.

    Raises:
        MergeError: it holds half a character (a lone surrogate), which neither a file nor a digest can.
    """
    try:
        return f"{name}".encode()
    except UnicodeEncodeError:
        raise MergeError(f"the tensor name {name!r} holds half a character; rename the tensor.") from None
