"""How a network is run on a machine: memory layout, precision, compiled or not, and in blocks that fit its memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from apgd_teach.devices import wait_for
from apgd_teach.errors import ApgdTeachError
from apgd_teach.models import make_encoder, network
from apgd_teach.tables import Table

__all__ = [
    "PLAIN",
    "WAYS",
    "Forward",
    "Pace",
    "Way",
    "block_table",
    "deterministic",
    "in_blocks",
    "no_room",
    "pace",
    "pace_table",
    "quickest",
    "room",
    "smaller",
    "usual_block",
]

_log = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""Features (image, feature) of images (image, channel, row, column)."""


@dataclass(frozen=True)
class Way:
    """One way of computing a network: it changes the speed and the last digits, and nothing that is asked for.

    Attributes:
        channels_last: keep pictures and convolutions as (row, column, channel) in memory.
        bfloat16: compute what tolerates it in bfloat16 (PyTorch's autocast); weights and optimiser stay in float32.
        compiled: let `torch.compile` make one program of the network, which takes up to a minute once.
        loader: fetch every batch from the host's memory through a DataLoader, where training here keeps all images on
            the device: only for `pace`, to see what that is worth.

    Lesson: 08.
    """

    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    loader: bool = False

    def __str__(self) -> str:
        words = [
            word
            for word, on in (
                ("channels last", self.channels_last),
                ("bfloat16", self.bfloat16),
                ("compiled", self.compiled),
                ("batches from a DataLoader", self.loader),
            )
            if on
        ]
        return " + ".join(words) or "plain"

    def ready(self, encoder: nn.Module) -> Forward:
        """What to call in place of `encoder`, which holds the weights as before and may be laid out anew.

        Args:
            encoder: on the device that it shall run on.

        Raises:
            ApgdTeachError: the device has no bfloat16.
        """
        if self == Way():
            return encoder
        device = next(encoder.parameters()).device
        if self.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ApgdTeachError(f"the device '{device}' has no bfloat16; leave that out.")
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        if self.channels_last:
            encoder.to(memory_format=torch.channels_last)
        run: Forward = torch.compile(encoder) if self.compiled else encoder

        def forward(images: Tensor) -> Tensor:
            narrow = torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
            with narrow:
                return run(images.to(memory_format=layout)).float()

        return forward


PLAIN = Way()
"""As PyTorch does it unasked."""

WAYS = (
    PLAIN,
    Way(loader=True),
    Way(channels_last=True),
    Way(bfloat16=True),
    Way(True, True),
    Way(True, True, True),
    Way(compiled=True),
)
"""Those that `pace` compares."""


@dataclass(frozen=True)
class Pace:
    """How fast one way was on this machine.

    Attributes:
        way: which.
        seconds: of one training step, the median; NaN where the way does not run here.
        gains: in each round, how many times faster than the plain way in the same round.
        once: seconds that the first step took, compiling included.
        why: what keeps it from running; empty where nothing does.
    """

    way: Way
    seconds: float
    gains: tuple[float, ...]
    once: float
    why: str = ""


def pace(
    name: str, device: torch.device, ways: Sequence[Way] = WAYS, *, batch_size: int = 128, rounds: int = 7
) -> list[Pace]:
    """One training step (a batch drawn, forward, backward, SGD) of a network in each way, timed by turns.

    The pictures are random ones, eight batches of them, on the device; a DataLoader has them on the host.

    Args:
        name: of the network, in `models.ENCODERS`.
        device: where to run.
        ways: to compare with the plain one, which is always measured.
        batch_size: images per step.
        rounds: in each of which every way takes one step; a noisy machine slows the ways of a round alike.

    Returns:
        The plain way first, then the others in their order.

    Raises:
        ApgdTeachError: there is no such network, or no round.

    Lesson: 08.
    """
    if rounds < 1:
        raise ApgdTeachError(f"rounds={rounds!r} measure nothing; give a whole number from 1.")
    shape = network(name).shape
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(8 * batch_size, *shape, generator=draw)
    labels = torch.randint(10, (len(images),), generator=draw)
    steps: dict[Way, Callable[[], None]] = {}
    once: dict[Way, float] = {}
    why: dict[Way, str] = {}
    every = list(dict.fromkeys([PLAIN, *ways]))
    for way in every:
        try:
            step = _step(name, way, device, TensorDataset(images, labels), batch_size)
            start = time.perf_counter()
            step()
            wait_for(device)
            once[way] = time.perf_counter() - start
            step()
            steps[way] = step
        except Exception as error:  # of compilers and back ends, each of which has errors of its own
            why[way] = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    taken: dict[Way, list[float]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            taken[way].append(time.perf_counter() - start)
    plain = taken.get(PLAIN, [])
    return [
        Pace(
            way,
            median(taken[way]) if way in taken else float("nan"),
            tuple(p / t for p, t in zip(plain, taken[way], strict=True)) if way in taken and plain else (),
            once.get(way, float("nan")),
            why.get(way, ""),
        )
        for way in every
    ]


def _step(name: str, way: Way, device: torch.device, pictures: TensorDataset, batch_size: int) -> Callable[[], None]:
    encoder = make_encoder(name, 0).to(device).train()
    head = nn.Linear(network(name).features, 10, device=device)
    forward = way.ready(encoder)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.01, momentum=0.9)
    batches = _loaded(pictures, batch_size) if way.loader else _drawn(pictures, batch_size, device)

    def step() -> None:
        images, labels = (tensor.to(device) for tensor in next(batches))
        with torch.enable_grad():
            loss = F.cross_entropy(head(forward(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def _drawn(pictures: TensorDataset, batch_size: int, device: torch.device) -> Iterator[Sequence[Tensor]]:
    """Batches as training draws them: all images are on the device, and which ones is drawn on the CPU."""
    there = [tensor.to(device) for tensor in pictures.tensors]
    draw = torch.Generator().manual_seed(0)
    while True:
        picked = torch.randint(len(pictures), (batch_size,), generator=draw, device="cpu").to(device)
        yield [tensor[picked] for tensor in there]


def _loaded(pictures: TensorDataset, batch_size: int) -> Iterator[Sequence[Tensor]]:
    """Batches as most tutorials have them: image by image out of a data set, joined, brought over."""
    while True:
        yield from DataLoader(pictures, batch_size, shuffle=True, drop_last=True)


def block_table(
    name: str, device: torch.device, blocks: Sequence[int] = (1, 10, 100, 1000), *, rounds: int = 3
) -> Table:
    """How many images a second a network looks at without learning, by how many it is given at once.

    Args:
        name: of the network, in `models.ENCODERS`.
        device: where to run.
        blocks: how many images at once; each round takes every one of them by turns.
        rounds: the medians over these are shown.

    Lesson: 08.
    """
    encoder = make_encoder(name, 0).to(device).eval()
    images = torch.rand(max(blocks), *network(name).shape, generator=torch.Generator().manual_seed(0)).to(device)
    taken: dict[int, list[float]] = {block: [] for block in blocks}
    for _ in range(rounds):
        for block, seconds in taken.items():
            # The same number of images for all but the slowest, for which a hundred are enough.
            some = images[: len(images) if block >= 100 else 100]
            wait_for(device)
            start = time.perf_counter()
            in_blocks(encoder, some, block=block)
            wait_for(device)
            seconds.append((time.perf_counter() - start) / len(some))
    each = {block: median(seconds) for block, seconds in taken.items()}
    first = each[blocks[0]]
    return Table(
        ("images at once", "images a second", "times as many"),
        [(block, f"{1 / seconds:,.0f}", first / seconds) for block, seconds in each.items()],
        digits=1,
        caption=f"Looking at images with '{name}'",
        note="Median over rounds, in which all sizes take turns. Where nothing else is said, the course looks at "
        f"{usual_block(device):,} at once here.",
    )


def quickest(paces: Sequence[Pace], *, steps: int, least: float = 1.1) -> Way:
    """The fastest way that pays, else the plain one.

    A way pays if it is at least `least` times as fast as the plain one in three of four rounds, and saves more in
    `steps` training steps than its first step takes longer, which is where a compiler works.

    Args:
        paces: as `pace` returns them.
        steps: how many will be trained with it.
        least: see above.

    Raises:
        ApgdTeachError: nothing was measured.

    Lesson: 08.
    """
    ran = [one for one in paces if one.gains]
    if not ran:
        raise ApgdTeachError("nothing was measured; give what `pace` returns.")
    plain = next(one for one in ran if one.way == PLAIN)

    def pays(one: Pace) -> bool:
        sure = sorted(one.gains)[len(one.gains) // 4]
        saved = steps * (plain.seconds - one.seconds)
        return not one.way.loader and sure >= least and saved > one.once - plain.once

    return max(filter(pays, ran), key=lambda one: median(one.gains), default=plain).way


def pace_table(name: str, paces: Sequence[Pace], device: str) -> Table:
    """What `pace` found, one row per way.

    Args:
        name: of the network.
        paces: as `pace` returns them.
        device: in words.

    Lesson: 08.
    """

    def row(one: Pace) -> tuple[object, ...]:
        if not one.gains:
            return (str(one.way), None, f"does not run here: {one.why}", None)
        low, high = min(one.gains), max(one.gains)
        said = "–" if one.way == PLAIN else f"{median(one.gains):.2f} ({low:.2f} to {high:.2f})"
        return (str(one.way), 1000 * one.seconds, said, one.once)

    return Table(
        ("way", "ms a step", "times faster than plain", "first step, s"),
        [row(one) for one in paces],
        digits=1,
        caption=f"Training steps of '{name}' on {device}",
        note=f"Median over {max(len(one.gains) for one in paces)} rounds, in brackets the least and the most; in each "
        "round every way takes a step, and is held against the plain one of the same round. First step: with what had "
        "to be compiled, unless that was kept from an earlier run.",
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch refuses inside what may give other digits on the next run; for tests, and for who has to repeat a run.

    On CUDA the environment variable CUBLAS_WORKSPACE_CONFIG has to be set before the first matrix product of the
    process; inside it is set if nobody has. Processes that `parallel` starts inside are deterministic as well.

    Lesson: 08.
    """
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def usual_block(device: torch.device) -> int:
    """How many images are looked at at once where nobody says how many: on a CPU so few that its caches hold them."""
    return 100 if device.type == "cpu" else 1000


@torch.no_grad()
def in_blocks(forward: Forward, images: Tensor, *, block: int | None = None) -> Tensor:
    """What `forward` says of many images, a block at a time; in smaller blocks where the device has no room.

    Args:
        forward: a function of images (image, channel, row, column) that treats each for itself.
        images: all of them, on the device.
        block: how many at a time, to begin with; by default what `usual_block` says.

    Returns:
        The results joined along their first axis, one row per image.

    Raises:
        ApgdTeachError: not even one image fits.

    Lesson: 08.
    """
    block = min(block or usual_block(images.device), max(1, len(images)))
    while True:
        try:
            return torch.cat([forward(part) for part in images.split(block)])
        except (RuntimeError, MemoryError) as error:
            if not no_room(error):
                raise
        # Not in the handler: the sentence is to come without what the device said.
        block = smaller(block, f"looking at {len(images):,} images")


def no_room(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left: CUDA has a class for that, the others have words."""
    words = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


@contextmanager
def room(doing: str) -> Iterator[None]:
    """One sentence in place of a traceback where the device has no room for what cannot be made smaller here.

    Args:
        doing: what is done inside, for the sentence: "merging".

    Raises:
        ApgdTeachError: no memory is left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not no_room(error):
            raise
    else:
        return
    raise ApgdTeachError(
        f"the device is out of memory {doing}; close what else uses it, take fewer images or tasks, or use "
        "device='cpu'."
    ) from None


def smaller(size: int, doing: str) -> int:
    """Half of a number of images, said in one sentence, when the device has no room for them all.

    Raises:
        ApgdTeachError: it is one image already.
    """
    if size <= 1:
        raise ApgdTeachError(
            f"the device is out of memory {doing}, even one at a time; close what else uses it, or use device='cpu'."
        )
    _log.warning("The device is out of memory %s, %d at a time; going on with %d at a time.", doing, size, size // 2)
    return size // 2
