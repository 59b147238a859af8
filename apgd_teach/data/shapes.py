"""The generated family: ten classes of shapes and textures in colour, drawn from numbers alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["VERSION", "draw_shapes"]

VERSION = 1
"""Goes up whenever other pictures come out."""

_SIDE, _BLOCK = 32, 50
Floats = NDArray[np.float64]


def draw_shapes(split: str, per_class: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures of the ten classes, the same ones on every call, in rounds of ten: one of each class per round.

    Each shows one shape or texture, of random place, size, angle and two colours, over a slope of light, half hidden
    now and then by a bar, with noise. More images are the same ones and further ones.

    Args:
        split: "train" or "test"; they share no picture.
        per_class: images of each class.

    Returns:
        (image, row=32, column=32, channel=3) uint8 and (image,) uint8. In rare pixels the sine of another machine may
        round to the neighbouring level.

    Lesson: 08.
    """
    # Each block of rounds has a seed of its own, so that it does not matter how many are asked for.
    blocks = [_block(split, first) for first in range(0, per_class, _BLOCK)]
    images, labels = (np.concatenate(parts)[: 10 * per_class] for parts in zip(*blocks, strict=True))
    return images, labels


def _block(split: str, first: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    digest = hashlib.sha256(f"shapes {VERSION} {split} {first}".encode()).digest()
    draw = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    n = 10 * _BLOCK
    labels = np.tile(np.arange(10, dtype=np.uint8), _BLOCK)
    ink = _ink(labels, draw)[..., None]
    light, dark = _colours(draw, n)
    slope = _slope(draw, n)[..., None]
    images = (dark + (light - dark) * ink) * slope
    bar, colour = _bar(draw, n)
    images = np.where(bar[..., None], colour, images)
    images = images + draw.normal(0, 0.06, images.shape)
    return (images.clip(0, 1) * 255).round().astype(np.uint8), labels


def _grid(draw: np.random.Generator, n: int, spread: float) -> tuple[Floats, Floats]:
    """Coordinates (image, row, column) around a random middle, turned by a random angle; about -1 to 1."""
    line = (np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
    x, y = np.meshgrid(line, line)
    middle = draw.uniform(-spread, spread, (2, n, 1, 1))
    angle = draw.uniform(-math.pi / 5, math.pi / 5, (n, 1, 1))
    x, y = x - middle[0], y - middle[1]
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _ink(labels: NDArray[np.uint8], draw: np.random.Generator) -> Floats:
    """How much of the light colour each pixel has, from 0 to 1, (image, row, column)."""
    n = len(labels)
    x, y = _grid(draw, n, 0.3)
    size = draw.uniform(0.45, 0.75, (n, 1, 1))
    pitch = draw.uniform(0.35, 0.55, (n, 1, 1))
    phase = draw.uniform(0, 1, (n, 1, 1))
    distance = np.empty((n, _SIDE, _SIDE))
    for label, form in enumerate(_FORMS):
        of = labels == label
        distance[of] = form(x[of], y[of], size[of], pitch[of], phase[of])
    # About one pixel from ink to ground.
    return (0.5 - distance * _SIDE / 3).clip(0, 1)


def _triangle(x: Floats, y: Floats, size: Floats, pitch: Floats, phase: Floats) -> Floats:
    return np.maximum(0.87 * np.abs(x) + 0.5 * y, -y) - 0.5 * size


def _cross(x: Floats, y: Floats, size: Floats, pitch: Floats, phase: Floats) -> Floats:
    wide, high = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(wide, high) - 0.28 * size, np.maximum(wide, high) - size)


def _chequers(x: Floats, y: Floats, size: Floats, pitch: Floats, phase: Floats) -> Floats:
    across, down = _saw(x / pitch), _saw(y / pitch)
    return -np.sign(across * down) * np.minimum(np.abs(across), np.abs(down))


_FORMS: tuple[Callable[[Floats, Floats, Floats, Floats, Floats], Floats], ...] = (
    lambda x, y, size, pitch, phase: np.hypot(x, y) - size,
    lambda x, y, size, pitch, phase: np.abs(np.hypot(x, y) - 0.8 * size) - 0.22 * size,
    lambda x, y, size, pitch, phase: np.maximum(np.abs(x), np.abs(y)) - 0.85 * size,
    _triangle,
    _cross,
    lambda x, y, size, pitch, phase: np.abs(_saw(x / pitch + phase)) - 0.25,
    lambda x, y, size, pitch, phase: np.abs(_saw(np.arctan2(y, x) * 4 / math.pi + phase)) - 0.25,
    _chequers,
    lambda x, y, size, pitch, phase: np.hypot(_saw(x / pitch), _saw(y / pitch)) - 0.3,
    lambda x, y, size, pitch, phase: np.abs(_saw(y / pitch + 0.25 * np.sin(x / pitch * math.pi))) - 0.25,
)
"""By label, from coordinates, size, pitch and phase: how far outside a pixel lies, below zero inside, in units of half
the picture's side."""


def _saw(turns: Floats) -> Floats:
    """From -0.5 to 0.5, again and again."""
    return turns - np.floor(turns + 0.5)


def _colours(draw: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Two colours (image, 1, 1, channel) that differ in brightness, which of them is lighter left to chance."""
    ground, ink = draw.uniform(0.1, 0.9, (2, n, 3))
    gap = ink.mean(axis=1) - ground.mean(axis=1)
    push = np.where(np.abs(gap) < 0.25, np.copysign(0.25, gap) - gap, 0.0) / 2
    return (ink + push[:, None])[:, None, None], (ground - push[:, None])[:, None, None]


def _slope(draw: np.random.Generator, n: int) -> Floats:
    """Light that falls off to one side, (image, row, column)."""
    x, y = _grid(draw, n, 0.0)
    tilt = draw.uniform(-0.35, 0.35, (2, n, 1, 1))
    return 0.9 + tilt[0] * x + tilt[1] * y


def _bar(draw: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], Floats]:
    """Where a bar hides a picture (image, row, column), three times in ten, and its colour (image, 1, 1, channel)."""
    x, _ = _grid(draw, n, 0.8)
    there = draw.uniform(0, 1, (n, 1, 1)) < 0.3
    return (np.abs(x) < 0.18) & there, draw.uniform(0, 1, (n, 1, 1, 3))
