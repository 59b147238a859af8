"""Three ways to do several tasks, and what each costs: experts apart, one network trained on all data, a merge."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, figure, styled
from apgd_teach.tables import Table

__all__ = ["WAYS", "Situation", "draw_ways"]

WAYS = ("experts apart", "trained on all data", "merged")
KINDS = ("memory", "labels", "agreements", "training")
_HATCHES = ("", "//", "xx", "..")


@dataclass(frozen=True)
class Situation:
    """What a decision depends on, in any one currency; the numbers that stand here are an example and nobody's prices.

    Attributes:
        experts: how many there are; they exist already.
        parameters: of one network, in millions.
        bytes_each: of a parameter.
        months: that the network is to be served.
        memory_price: of a GB kept ready for a month, on all servers together.
        trained_on: examples of each task to be labelled anew for joint training; 0 where all labels are there.
        checked_on: labelled examples of each task on which a new network is judged before it is used.
        label_price: of one example.
        agreement_price: of bringing one task's training data to where they may be used together: contracts, review,
            secure storage. Infinite where it may not be done.
        hours: of an accelerator for joint training.
        hour_price: of one such hour.

    Raises:
        ApgdTeachError: a number is negative or none, or there are fewer than two experts.
    """

    experts: int = 8
    parameters: float = 86.0
    bytes_each: float = 4.0
    months: float = 12.0
    memory_price: float = 10.0
    trained_on: int = 2000
    checked_on: int = 500
    label_price: float = 0.1
    agreement_price: float = 2000.0
    hours: float = 24.0
    hour_price: float = 3.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, int | float) or math.isnan(value) or value < 0:
                raise ApgdTeachError(f"{one.name} is {value!r}; give a number that is not negative.")
        if self.experts < 2:
            raise ApgdTeachError(f"there is nothing to merge in {self.experts} expert; give two or more.")

    @property
    def kept_ready(self) -> float:
        """What one network's memory costs over all months."""
        return self.parameters * 1e6 * self.bytes_each / 1e9 * self.memory_price * self.months

    def bill(self, way: str) -> dict[str, float]:
        """What one of `WAYS` costs, by kind.

        Nothing is said of accuracy, which is to be measured, nor of what all three have in common.

        Raises:
            ApgdTeachError: there is no such way.
        """
        checks = self.experts * self.checked_on * self.label_price
        if way == "experts apart":
            return {**dict.fromkeys(KINDS, 0.0), "memory": self.experts * self.kept_ready}
        if way == "trained on all data":
            return {
                "memory": self.kept_ready,
                "labels": checks + self.experts * self.trained_on * self.label_price,
                "agreements": self.experts * self.agreement_price,
                "training": self.hours * self.hour_price,
            }
        if way == "merged":
            return {**dict.fromkeys(KINDS, 0.0), "memory": self.kept_ready, "labels": checks}
        raise ApgdTeachError(f"'{way}' is none of the ways; there are: {', '.join(WAYS)}.")

    def total(self, way: str) -> float:
        """Of a bill."""
        return sum(self.bill(way).values())

    @property
    def pays_from(self) -> int | None:
        """The least number of experts at which the merge costs less than experts apart; None where it never does.

        Each expert more costs its memory on one side and its check on the other: T · m against m + T · c.
        """
        check = self.checked_on * self.label_price
        if self.kept_ready <= check:
            return None
        return max(2, math.floor(self.kept_ready / (self.kept_ready - check)) + 1)

    def table(self) -> Table:
        """A row for each way.

        Lesson: 09.
        """
        rows = [(way, *(f"{one:,.0f}" for one in self.bill(way).values()), f"{self.total(way):,.0f}") for way in WAYS]
        return Table(
            ("way", *KINDS, "together"),
            rows,
            caption=f"{self.experts} experts of {self.parameters:g} million parameters, {self.months:g} months",
            note="In the currency of the prices that were given. What is lost in accuracy stands on no bill.",
        )


def draw_ways(situation: Situation) -> Drawing:
    """A bar for each way, in parts by kind.

    Args:
        situation: with your own numbers.

    Lesson: 09.
    """
    finite = [situation.total(way) for way in WAYS if math.isfinite(situation.total(way))]
    most = max(finite) or 1.0
    with styled():
        drawn, (axes,) = figure(1, 1, width=8.0, height=3.0)
        for place, way in enumerate(WAYS):
            left = 0.0
            bill = situation.bill(way)
            if not math.isfinite(sum(bill.values())):
                axes.text(0.01 * most, place, "cannot be done: the data may not be brought together", va="center")
                continue
            for kind, color, hatch in zip(KINDS, COLORS, _HATCHES, strict=False):
                axes.barh(
                    place,
                    bill[kind],
                    left=left,
                    height=0.6,
                    color=color,
                    hatch=hatch,
                    edgecolor="white",
                    label=kind if not place else None,
                )
                left += bill[kind]
            axes.text(left + 0.01 * most, place, f"{left:,.0f}", va="center")
        axes.set_yticks(range(len(WAYS)), WAYS)
        axes.set_ylim(len(WAYS) - 0.5, -0.5)
        axes.set_xlim(0, 1.18 * most)
        axes.set(xlabel="cost, in the currency of the prices")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
    totals = {way: situation.total(way) for way in WAYS}
    cheapest = min(totals, key=totals.__getitem__)
    pays = situation.pays_from
    often = (
        f"Against experts apart, merging saves money from {pays} experts on."
        if pays
        else "Against experts apart, merging saves nothing at any number: a check costs more than an expert's memory."
    )
    return Drawing(
        drawn,
        f"{situation.experts} experts of {situation.parameters:g} million parameters for {situation.months:g} months: "
        + "; ".join(f"{way} {_spoken(total)}" for way, total in totals.items())
        + f". The least is {cheapest}. {often} Accuracy is not on the bill.",
        {f"{way}": total for way, total in totals.items()},
    )


def _spoken(total: float) -> str:
    return f"costs {total:,.0f}" if math.isfinite(total) else "cannot be done"
