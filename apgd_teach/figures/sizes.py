"""A merge's update in fewer numbers: how much accuracy is left at which size, and which layers the numbers go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, figure, look, styled
from apgd_teach.merging import StateDict
from apgd_teach.merging.low_rank import Kept, low_rank
from apgd_teach.progress import bar
from apgd_teach.tables import Table

__all__ = ["Cut", "Sizes", "draw_sizes", "measure_sizes"]


@dataclass(frozen=True)
class Cut:
    """An update of which a share of the numbers is kept.

    Attributes:
        asked: share of the matrices' numbers that was asked for, in per cent.
        numbers: share of all the update's numbers that is kept, in per cent; what is no matrix is kept whole.
        energy: ‖what is kept‖² / ‖M‖² over all matrices, in per cent.
        accuracy: mean over the tasks (%).
        worst: of the worst task (%).
        rows: a row for each tensor.
    """

    asked: float
    numbers: float
    energy: float
    accuracy: float
    worst: float
    rows: tuple[Kept, ...]


@dataclass(frozen=True)
class Sizes:
    """Cuts of one update, and what they stand between.

    Attributes:
        base: mean accuracy (%) of the network that nothing is added to.
        whole: mean accuracy (%) with the whole update.
        cuts: the smallest first.

    Lesson: 09.
    """

    base: float
    whole: float
    cuts: tuple[Cut, ...]

    def cut(self, asked: float) -> Cut:
        """One of them, by the share that was asked for.

        Raises:
            ApgdTeachError: that share was not measured.
        """
        for one in self.cuts:
            if one.asked == asked:
                return one
        known = ", ".join(f"{one.asked:g}" for one in self.cuts)
        raise ApgdTeachError(f"no cut to {asked:g} % was measured; there are: {known}.")

    def smallest(self, tolerance: float) -> Cut | None:
        """The smallest cut that loses no more than `tolerance` points against the whole update; None if none does."""
        return next((one for one in self.cuts if self.whole - one.accuracy <= tolerance), None)

    def table(self) -> Table:
        """A row per cut.

        Lesson: 09.
        """
        return Table(
            ("numbers kept %", "energy kept %", "mean accuracy %", "lost, points", "worst task %"),
            [
                (one.numbers, one.energy, one.accuracy, f"{self.whole - one.accuracy:.1f}".replace("-", "−"), one.worst)
                for one in self.cuts
            ],
            caption="The update in fewer numbers",
            note=f"The whole update has {self.whole:.1f} % in the mean, the base {self.base:.1f} %. Lost: against the "
            "whole update.",
        )


def measure_sizes(
    evaluator: Evaluator | Callable[[StateDict], Mapping[str, float]],
    base: StateDict,
    merged: StateDict,
    shares: Sequence[float],
    *,
    progress: bool = True,
) -> Sizes:
    """Cut a merge's update to several shares of its numbers, each spent where it holds most, and score what is left.

    Args:
        evaluator: of a pool, on the images that are to be looked at; or, for models of your own, a function that
            gives the accuracy (%) of a state dict on each task, by its name.
        base: θ₀.
        merged: θ₀ + M.
        shares: in per cent, each above 0 and up to 100.
        progress: whether to show a bar.

    Raises:
        ApgdTeachError: no share was given.
        MergeError: a share is none, or as `low_rank`.

    Source: Eckart and Young, 1936. Lesson: 09.
    """
    if not shares:
        raise ApgdTeachError("no share was given; give one or more, in per cent.")

    def scored(state: StateDict) -> tuple[float, float]:
        if isinstance(evaluator, Evaluator):
            found = [score.accuracy for score in evaluator.scores(state).values()]
        else:
            found = [float(one) for one in evaluator(state).values()]
        return fmean(found), min(found)

    cuts = []
    with bar(len(shares), "size", "sizes", progress) as ticks:
        for share in sorted(shares):
            kept = low_rank(base, merged, share=share / 100)
            accuracy, worst = scored(kept.state_dict(base))
            cuts.append(
                Cut(
                    share,
                    100 * kept.numbers / kept.full,
                    100 * kept.energy,
                    accuracy,
                    worst,
                    kept.rows,
                )
            )
            ticks.update()
    return Sizes(scored(base)[0], scored(merged)[0], tuple(cuts))


def draw_sizes(sizes: Sizes, kept: float, *, title: str = "The merged update in fewer numbers") -> Drawing:
    """Accuracy against size with one cut marked, and beside it what of each layer's directions that cut keeps.

    Args:
        sizes: what was measured.
        kept: the share that was asked for, one of the measured ones.
        title: above the picture.

    Raises:
        ApgdTeachError: that share was not measured.

    Lesson: 09.
    """
    one = sizes.cut(kept)
    matrices = [row for row in one.rows if len(row.shape) > 1]
    with styled():
        drawn, (curve, layers) = figure(1, 2, width=10.0, height=3.8)
        _curve(curve, sizes, one)
        for place, row in enumerate(matrices):
            most = row.most
            rank = most if row.rank is None else row.rank
            layers.barh(place, 100 * rank / most, color=COLORS[0], height=0.6)
            words = f"{rank} of {most}" if row.rank is not None else "whole"
            layers.text(100 * rank / most + 2, place, words, va="center", fontsize=10)
        layers.set_yticks(range(len(matrices)), [row.name.removesuffix(".weight") for row in matrices])
        layers.set_ylim(len(matrices) - 0.5, -0.5)
        layers.set_xlim(0, 130)
        layers.set_xticks([0, 25, 50, 75, 100])
        layers.set(xlabel="directions kept (%)", title=f"Where {one.numbers:.0f} % of the numbers go")
        drawn.suptitle(title)
        drawn.legend(*curve.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    lost = sizes.whole - one.accuracy
    lossy = (
        f"{lost:.1f} points less than"
        if lost >= 0.05
        else f"{-lost:.1f} points more than"
        if lost <= -0.05
        else "as much as"
    )
    return Drawing(
        drawn,
        f"With {one.numbers:.0f} % of the update's numbers, which hold {one.energy:.0f} % of its squares, the mean "
        f"accuracy is {one.accuracy:.1f} %: {lossy} with all of them. The base has {sizes.base:.1f} %.",
        {"numbers (%)": one.numbers, "energy (%)": one.energy, "mean accuracy (%)": one.accuracy},
    )


def _curve(axes: Axes, sizes: Sizes, marked: Cut) -> None:
    axes.axhline(sizes.whole, **{**look(1), "marker": ""}, label="whole update")
    axes.axhline(sizes.base, **{**look(7), "marker": ""}, label="base")
    axes.plot([one.numbers for one in sizes.cuts], [one.accuracy for one in sizes.cuts], **look(0), label="cut")
    axes.plot(
        [marked.numbers],
        [marked.accuracy],
        color=COLORS[0],
        marker="o",
        markersize=13,
        fillstyle="none",
        linestyle="",
        label="this cut",
    )
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick >= 0.8 * sizes.cuts[0].numbers]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set(xlabel="numbers kept (% of the update's)", ylabel="mean accuracy (%)", title="Accuracy against size")
