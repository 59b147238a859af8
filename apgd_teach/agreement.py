"""The same merge in two places: on another device, or in another precision. How far apart do the answers lie?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.machine import room
from apgd_teach.merging import Merged, Method, StateDict, merge, shared_basis
from apgd_teach.merging.statedict import as_matrix
from apgd_teach.tables import Table

__all__ = ["POINTS", "TOLERANCE", "Agreement", "Place", "agreement", "agreement_table"]

TOLERANCE = 1e-3
"""What two places may differ by, of an update's length and of a projector's: merges are computed in float32 and solved
by iterations that stop, and a device adds up in an order of its own."""

POINTS = 0.25
"""What two places may differ by in mean accuracy (points): an image in four hundred, for which two classes are as good
as equal. A merge may miss `TOLERANCE` in one layer and keep this: TSV-M where all tasks' directions nearly fill a
layer (see its docstring), a solver that stops where the gradient has become small."""


@dataclass(frozen=True)
class Place:
    """Where a merge is computed: a device, and in which precision."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.device.type}, {str(self.dtype).removeprefix('torch.')}"

    def bring(self, state: StateDict) -> dict[str, Tensor]:
        """A state dict to this place; integers keep their type."""
        return {
            key: tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)
            for key, tensor in state.items()
        }


@dataclass(frozen=True)
class Agreement:
    """How far two places are apart.

    Attributes:
        method: that was merged by.
        places: the two.
        update: ‖M − M'‖ / ‖M‖, the largest over the weights.
        projector: ‖P − P'‖ / √(2k) of the shared subspaces of k = ⌊r/6⌋ directions, the largest over the weights: 0
            for the same subspace, 1 for subspaces at right angles. Bases are not compared, since a subspace has many.
        merged: the network of the second place, back in the first one's type.
    """

    method: str
    places: tuple[Place, Place]
    update: float
    projector: float
    merged: Merged

    @property
    def holds(self) -> bool:
        """Whether both numbers are within `TOLERANCE`."""
        return max(self.update, self.projector) <= TOLERANCE


def agreement(
    base: StateDict, experts: Mapping[str, StateDict], method: str | Method, one: Place, other: Place
) -> Agreement:
    """Merge in two places and compare.

    Args:
        base: θ₀, a state dict.
        experts: by name, θᵢ.
        method: as for `merge`; one that draws random numbers draws the same in both.
        one, other: the places.

    Raises:
        ApgdTeachError: what `merge` raises, or a place that this machine has not.

    Lesson: 08.
    """
    made = []
    for place in (one, other):
        try:
            inputs = [place.bring(state) for state in (base, *experts.values())]
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ApgdTeachError(f"nothing can be computed on {place}: {str(error).splitlines()[0]}.") from None
        with room(f"merging on {place}"):
            made.append((inputs, merge(inputs[0], dict(zip(experts, inputs[1:], strict=True)), method)))
    (first, left), (second, right) = made
    update = projector = 0.0
    for key, start in base.items():
        if start.ndim < 2 or not start.is_floating_point():
            continue
        moved = [
            as_matrix((made_of.state_dict[key] - inputs[0][key]).cpu().double())
            for inputs, made_of in ((first, left), (second, right))
        ]
        if float(moved[0].norm()) > 0:
            update = max(update, float((moved[0] - moved[1]).norm() / moved[0].norm()))
        vectors = [torch.stack([as_matrix(one[key] - state[0][key]) for one in state[1:]]) for state in (first, second)]
        # Sixteen bits have no decomposition of their own: merges decompose them in 32.
        vectors = [stack.float() if stack.element_size() < 4 else stack for stack in vectors]
        kept = min(vectors[0].shape[1:]) // 6
        if kept:
            bases = [shared_basis(stack, kept).cpu().double() for stack in vectors]
            apart = (bases[0] @ bases[0].T - bases[1] @ bases[1].T).norm()
            projector = max(projector, float(apart) / (2 * kept) ** 0.5)
    back = {key: tensor.to(base[key]) for key, tensor in right.state_dict.items()}
    return Agreement(left.audit.method, (one, other), update, projector, Merged(back, right.audit))


def agreement_table(found: Mapping[str, Agreement]) -> Table:
    """What `agreement` found, by label. Lesson: 08."""
    first = next(iter(found.values()))
    return Table(
        ("method", "‖M − M'‖ / ‖M‖", f"within {TOLERANCE:g}"),
        [(label, f"{one.update:.1e}", "yes" if one.holds else "no") for label, one in found.items()],
        caption=f"The same merges: {first.places[0]} and {first.places[1]}",
        note=f"M is the update of a layer; the largest over the layers. The projectors onto what the tasks share, k = "
        f"r // 6 directions of each layer whatever the method, are {max(one.projector for one in found.values()):.1e} "
        "apart at most, as a share of √(2k), which is how far two subspaces of k directions can be apart.",
    )
