"""The distortions under which a base is trained: those that the tasks are made of, drawn anew for every batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["distorted"]


def distorted(images: Tensor) -> Tensor:
    """A batch under distortions, a quarter of it at a time, each its own, drawn from the CPU's random numbers.

    Args:
        images: (image, channel, row, column) in [0, 1]: grey or in colour.

    Returns:
        The same shape and range.

    Lesson: 01, 08.
    """
    one = _grey if images.shape[1] == 1 else _colour
    return torch.cat([one(part) for part in images.chunk(4)])


def _grey(part: Tensor) -> Tensor:
    rotate, invert, transpose, noise = (float(number) for number in torch.rand(4))
    if rotate < 0.5:
        angle = float(torch.rand(())) * 120 - 60
        part = v2.functional.rotate(part, angle, interpolation=v2.InterpolationMode.BILINEAR)
    if invert < 0.3:
        part = 1 - part
    if transpose < 0.3:
        part = part.transpose(2, 3)
    if noise < 0.3:
        part = (part + 0.3 * torch.randn(part.shape).to(part.device)).clamp(0, 1)
    return part


def _colour(part: Tensor) -> Tensor:
    mirror, hue, invert, turn, noise, blur = (float(number) for number in torch.rand(6))
    down, right = (int(number) for number in torch.randint(-3, 4, (2,)))
    part = part.roll((down, right), (2, 3))
    if mirror < 0.5:
        part = part.flip(3)
    if hue < 0.3:
        part = v2.functional.adjust_hue(part, float(torch.rand(())) - 0.5)
    if invert < 0.2:
        part = 1 - part
    if turn < 0.2:
        part = part.transpose(2, 3)
    if noise < 0.2:
        part = (part + 0.1 * torch.randn(part.shape).to(part.device)).clamp(0, 1)
    if blur < 0.2:
        part = v2.functional.gaussian_blur(part, [3, 3], [0.8, 0.8])
    return part
