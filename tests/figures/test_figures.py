from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import sys
from pathlib import Path as File

import matplotlib as mpl
import numpy as np
import pytest
import torch
from drawn import BASE, DRAWINGS, DRAWN, NAMES, TITLES, comparison, path, vectors
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

import apgd_teach
from apgd_teach.course.profiles import VISIT
from apgd_teach.errors import FigureError
from apgd_teach.figures import (
    cosine_matrix,
    draw_comparison,
    draw_norms,
    draw_paths,
    draw_planes,
    draw_spectra,
    layer_norms,
    show,
    spectra,
)
from apgd_teach.figures.lint import look_over
from apgd_teach.figures.style import COLORS, png
from apgd_teach.landscape import Plane


def texts(drawn: Figure) -> list[Text]:
    """What is written in a figure, ticks outside the axes' limits left out."""
    FigureCanvasAgg(drawn).draw()
    hidden = set()
    for axes in drawn.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    return [one for one in drawn.findobj(Text) if one.get_visible() and one.get_text().strip() and one not in hidden]


def look(line) -> tuple[object, ...]:
    # The dashes themselves: Matplotlib calls every pattern of one's own "--".
    return line.get_marker(), str(line.get_linestyle()), str(line._dash_pattern)


# Every figure


def test_a_figure_is_returned_and_nothing_is_left_open_or_changed(draw) -> None:
    before = dict(mpl.rcParams)
    drawn = draw()
    png(drawn)
    assert type(drawn) is Figure
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_the_picture_is_one_that_can_be_read(draw) -> None:
    drawn = draw()
    with Image.open(io.BytesIO(png(drawn))) as picture:
        assert picture.size == tuple(round(100 * side) for side in drawn.get_size_inches())
        assert len(picture.getcolors(1 << 20)) > 10
        assert set(picture.info) <= {"dpi"}


@pytest.fixture(scope="module")
def another_process() -> list[str]:
    """What `drawn.py` prints: hashes, and a figure shown where there is no notebook."""
    program = [sys.executable, str(File(__file__).with_name("drawn.py"))]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()


def test_another_process_draws_the_same_bytes(another_process) -> None:
    assert another_process[:-1] == [
        f"{name} {hashlib.sha256(png(drawing())).hexdigest()}" for name, drawing in DRAWN.items()
    ]


def test_a_plain_terminal_gets_the_words_and_no_letters_of_the_picture(another_process) -> None:
    assert another_process[-1] == "Words, where there is no notebook."


def test_the_readers_own_settings_do_not_show(draw) -> None:
    plain = png(draw())
    own = {"savefig.dpi": 40, "savefig.bbox": "tight", "savefig.facecolor": "red", "axes.titleweight": "bold"}
    with pyplot.style.context("dark_background"), mpl.rc_context(own):
        assert png(draw()) == plain


def test_nothing_is_written_smaller_than_eight_points(draw) -> None:
    found = texts(draw())
    assert len(found) > 1
    assert min(one.get_fontsize() for one in found) >= 8


def test_no_text_lies_on_another_or_leaves_the_canvas(draw) -> None:
    drawn = draw()
    found = texts(drawn)
    for one in found:
        box = one.get_window_extent()
        inside = box.x0 > -0.5 and box.y0 > -0.5 and box.x1 < drawn.bbox.x1 + 0.5 and box.y1 < drawn.bbox.y1 + 0.5
        assert inside, f"{one.get_text()!r} leaves the canvas"
    for one, other in itertools.combinations(found, 2):
        # A name on a plane stands in a box of its own above the numbers of the contours.
        if sum(isinstance(each, Annotation) for each in (one, other)) != 1:
            assert not overlap(one, other), f"{one.get_text()!r} lies on {other.get_text()!r}"


def overlap(one: Text, other: Text) -> bool:
    """Do two texts share more than a pixel? Slanted ones of one slant are compared in their own directions."""
    if one.get_rotation() != other.get_rotation() or one.get_rotation() % 90 == 0:
        shared = Bbox.intersection(one.get_tightbbox(), other.get_tightbbox())
        return shared is not None and min(shared.width, shared.height) >= 1
    boxes = []
    for each in (one, other):
        box, angle = each.get_window_extent(), each.get_rotation()
        each.set_rotation(0)
        straight = each.get_window_extent()
        each.set_rotation(angle)
        turn = np.exp(-1j * np.radians(angle))
        centre = turn * complex((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        boxes.append((centre, straight.width, straight.height))
    (here, width, height), (there, wide, high) = boxes
    apart = there - here
    return abs(apart.real) < (width + wide) / 2 - 1 and abs(apart.imag) < (height + high) / 2 - 1


def test_the_measure_of_overlap_is_right_where_the_answer_is_known() -> None:
    drawn = Figure(figsize=(4, 4))
    one, beside = (drawn.text(x, 0.5, "digits, upright", rotation=40, ha="right") for x in (0.5, 0.62))
    FigureCanvasAgg(drawn).draw()
    assert not overlap(one, beside)
    beside.set_x(0.51)
    assert overlap(one, beside)
    one.set_rotation(0), beside.set_rotation(0)
    assert overlap(one, beside)
    beside.set_y(0.6)
    assert not overlap(one, beside)


@pytest.mark.parametrize("name", ["one comparison", "two comparisons", "two paths", "two planes", "norms", "spectra"])
def test_every_panel_says_what_it_shows_and_what_its_axes_count(name: str) -> None:
    drawn = DRAWN[name]()
    written = {one.get_text() for one in texts(drawn)}
    for axes in drawn.axes:
        assert axes.get_title()
        named = [axes.get_xlabel(), axes.get_ylabel(), *(one.get_text() for one in axes.get_xticklabels())]
        assert any(part.strip() and not part.replace(".", "").replace("−", "").isdigit() for part in named)
    units = {
        "norms": "‖τ‖ / ‖θ₀‖  (%)",
        "two paths": "loss (nats, log scale)",
        "spectra": "energy carried together (%)",
        "two planes": "distance in weight space, towards its expert",
    }
    assert units.get(name, "accuracy on test images (%)") in written


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_has_words_and_numbers_for_whoever_cannot_see_it(name: str) -> None:
    drawing = DRAWINGS[name]()
    assert drawing.words.endswith(".")
    assert all(isinstance(value, float) for value in drawing.numbers.values())
    # Photographs of the tasks are all that has no numbers.
    assert bool(drawing.numbers) != drawing.photo


def legend_of(drawn: Figure) -> list[str]:
    (legend,) = [*drawn.legends, *(axes.get_legend() for axes in drawn.axes if axes.get_legend())]
    return [one.get_text() for one in legend.get_texts()]


def test_legends_name_every_network_and_task() -> None:
    assert legend_of(DRAWN["two comparisons"]()) == ["base", "average", "its own expert"]
    assert legend_of(DRAWN["two paths"]()) == ["loss on digits, upright", "loss on digits, rotated 45°"]
    assert legend_of(DRAWN["norms"]()) == legend_of(DRAWN["spectra"]()) == list(TITLES.values())


# Colours


def many(kind: str, count: int) -> Axes:
    """A panel with `count` lines or sets of marks."""
    titles = {f"t{i}": f"task {i}" for i in range(count)}
    if kind == "norms":
        return draw_norms({task: {"a.weight": 1.0} for task in titles}, titles).figure.axes[0]
    if kind == "spectra":
        values = {"a.weight": {task: torch.tensor([1.0, 0.5]) for task in titles}}
        return draw_spectra(values, titles, layer="a.weight").figure.axes[0]
    if kind == "paths":
        line = path(1)
        longer = type(line)(line.steps, dict.fromkeys(titles, line.losses[NAMES[0]]), {})
        return draw_paths({"mild": longer}, titles, ("a", "b")).figure.axes[0]
    labels = tuple(f"merge {i}" for i in range(count - 2))
    return draw_comparison({"many": comparison(labels)}).figure.axes[0]


@pytest.mark.parametrize("kind", ["norms", "spectra", "paths", "comparison"])
def test_any_two_of_eight_differ_in_colour_and_in_shape(kind: str) -> None:
    lines = [line for line in many(kind, 8).lines if not line.get_label().startswith("_child")]
    assert len(lines) == 8
    assert len({to_rgb(line.get_color()) for line in lines}) == 8
    assert len({look(line) for line in lines}) == 8


@pytest.mark.parametrize("kind", ["norms", "spectra", "paths", "comparison"])
def test_any_two_of_twelve_still_differ_in_one_of_them(kind: str) -> None:
    lines = [line for line in many(kind, 12).lines if not line.get_label().startswith("_child")]
    assert len(lines) == 12
    assert len({(to_rgb(line.get_color()), *look(line)) for line in lines}) == 12


# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


# hue-rotate(180deg) of the W3C's Filter Effects, on sRGB as it is stored.
TURNED = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])


def in_the_dark(color: str) -> tuple[float, ...]:
    """What `invert(1) hue-rotate(180deg)` makes of a colour: panels in a dark theme, plots on a dark page."""
    return tuple(np.clip(TURNED @ (1 - np.array(to_rgb(color))), 0, 1))


def linear_of(color) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other) -> float:
    """The ratio of WCAG 2: 1 for the same, 21 for black and white."""
    low, high = sorted(float(linear_of(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(color, deficiency: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as it is seen with a deficiency."""
    linear = linear_of(color)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    ratio = to_xyz @ seen / (to_xyz @ np.ones(3))
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors, deficiency: str) -> float:
    """The smallest ΔE (1976) between any two."""
    return min(
        float(np.linalg.norm(lab(one, deficiency) - lab(other, deficiency)))
        for one, other in itertools.combinations(colors, 2)
    )


def test_the_measure_of_colours_is_right_where_the_answer_is_known() -> None:
    np.testing.assert_allclose(lab("#FFFFFF", "none"), [100, 0, 0], atol=1e-3)
    np.testing.assert_allclose(lab("#FF0000", "none"), [53.24, 80.09, 67.20], atol=0.02)
    # A red and a green that are far apart, and one colour to those who lack a cone.
    pair = ("#B05A46", "#6E7A3F")
    assert nearest(pair, "none") > 35
    assert nearest(pair, "deuteranopia") < 10


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_the_first_five_colours_are_told_apart_with_a_colour_vision_deficiency(deficiency: str) -> None:
    assert nearest(COLORS[:5], deficiency) > 12


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_in_the_dark_they_are_told_apart_as_well_and_stand_out(deficiency: str) -> None:
    dark = [in_the_dark(color) for color in COLORS]
    assert nearest(dark[:5], deficiency) > 12
    assert min(contrast(color, in_the_dark("#FFFFFF")) for color in dark) >= 3
    assert contrast(in_the_dark("#000000"), in_the_dark("#FFFFFF")) > 20
    package = File(apgd_teach.__file__).parent
    for rules in ("figures/panels.css", "course/templates/apgd/index.html.j2"):
        assert "filter: invert(1) hue-rotate(180deg);" in (package / rules).read_text(encoding="utf-8")


# The lint


def plain() -> tuple[Figure, Axes]:
    drawn = Figure(figsize=(3, 2))
    axes = drawn.subplots()
    axes.plot([0, 1], color=COLORS[0])
    return drawn, axes


def ticks(drawn: Figure, axes: Axes) -> None:
    axes.tick_params(labelsize=4)


def arrow(drawn: Figure, axes: Axes) -> None:
    axes.annotate("here", (0.5, 0.5), (0.1, 0.9), arrowprops={"color": "#FF0000"})


BROKEN = {
    "ticks of 4 points": (ticks, "is written in 4 points; take 8 or more."),
    "a red line": (lambda drawn, axes: axes.plot([1, 0], color="red"), "#ff0000 is no colour of the course"),
    "red marks": (lambda drawn, axes: axes.scatter([0], [1], color="red"), "#ff0000 is no colour"),
    "red halves": (
        lambda drawn, axes: axes.plot(
            [1], "o", color=COLORS[1], fillstyle="left", markerfacecoloralt="red", markeredgecolor=COLORS[1]
        ),
        "#ff0000 is no colour",
    ),
    "red gaps": (lambda drawn, axes: axes.plot([1, 0], "--", color=COLORS[1], gapcolor="red"), "#ff0000 is no colour"),
    "a red text": (lambda drawn, axes: axes.text(0.5, 0.5, "x", color="red"), "#ff0000 is no colour"),
    "a red box": (lambda drawn, axes: axes.text(0.5, 0.5, "x", bbox={"facecolor": "red"}), "#ff0000 is no colour"),
    "a red arrow": (arrow, "#ff0000 is no colour"),
    "a red bar": (lambda drawn, axes: axes.bar([0], [1], color="red"), "#ff0000 is no colour"),
    "red contours": (lambda drawn, axes: axes.contour(np.eye(4), colors="red"), "#ff0000 is no colour"),
    "jet": (lambda drawn, axes: axes.imshow(np.eye(4), cmap="jet"), "'jet' is no colour map of the course"),
    "jet, not on axes": (lambda drawn, axes: drawn.figimage(np.eye(4), cmap="jet"), "'jet' is no colour map"),
    "jet areas": (lambda drawn, axes: axes.contourf(np.eye(4), cmap="jet"), "'jet' is no colour map"),
    "own colours as a map": (
        lambda drawn, axes: axes.imshow(np.eye(4), cmap=ListedColormap(["red", "black"])),
        "#ff0000 is no colour",
    ),
    "another's name": (
        lambda drawn, axes: axes.imshow(np.eye(4), cmap=ListedColormap(["red", "lime"], name="viridis")),
        "'viridis' is no colour map",
    ),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_what_the_look_forbids_is_found(what: str) -> None:
    drawn, axes = plain()
    assert look_over(drawn) == []
    change, sentence = BROKEN[what]
    change(drawn, axes)
    (found,) = look_over(drawn)
    assert sentence in found


def test_the_figures_of_the_course_pass(draw) -> None:
    assert look_over(draw()) == []


def test_what_is_shown_is_looked_over_where_the_runner_looks_on(monkeypatch) -> None:
    drawn, axes = plain()
    axes.plot([1, 0], color="red")
    show(drawn, "Two lines.")
    monkeypatch.setenv(VISIT, "1")
    with pytest.raises(FigureError, match="#ff0000 is no colour"):
        show(drawn, "Two lines.")


# What is drawn is what was measured


def test_marks_of_a_comparison_stand_at_the_accuracies() -> None:
    one = comparison(("average", "ties"))
    (axes,) = draw_comparison({"one": one}).figure.axes
    for line, label in zip(axes.lines, ("base", "average", "ties", "experts"), strict=True):
        scores = {"base": one.base, "experts": one.experts, **one.merged}[label]
        assert list(line.get_xdata()) == [scores[task].accuracy for task in NAMES]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(TITLES.values())


def test_panels_share_their_scale() -> None:
    assert len({axes.get_xlim() for axes in DRAWN["two comparisons"]().axes}) == 1
    assert len({axes.get_ylim() for axes in DRAWN["two paths"]().axes}) == 1


def test_lines_of_a_path_are_its_losses_on_a_scale_that_holds_them_all() -> None:
    one = path()
    (axes,) = draw_paths({"mild": one}, TITLES, ("a", "b")).figure.axes
    for line, losses in zip(axes.lines, one.losses.values(), strict=False):
        assert list(line.get_xdata()) == one.steps
        assert list(line.get_ydata()) == losses
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert low < min(map(min, one.losses.values()))
    assert high > max(map(max, one.losses.values()))


def test_a_path_of_one_task_names_it_at_its_axis() -> None:
    drawn = draw_paths({"mild": path(1)}, TITLES, ("a", "b")).figure
    assert drawn.axes[0].get_ylabel() == "loss on digits, upright (nats, log scale)"
    assert not drawn.legends


def test_marks_of_the_same_accuracy_do_not_hide_each_other() -> None:
    (axes,) = draw_comparison({"one": comparison()}).figure.axes
    rows = np.array([line.get_ydata() for line in axes.lines])
    assert np.diff(rows, axis=0).min() > 0.15
    assert np.abs(rows - np.arange(len(NAMES))).max() < 0.5


def test_the_energy_of_the_first_directions_is_added_up() -> None:
    shares = {"a": torch.tensor([1.0, 0.5, 0.5]), "shuffled": torch.ones(3)}
    titles = {"a": "a", "shuffled": "its numbers shuffled"}
    drawing = draw_spectra({"w": shares, "v": {}}, titles, layer="w", first=2)
    found, control = drawing.figure.axes[0].lines
    assert drawing.words == (
        "Energy that the first 3 of 3 singular directions carry in w: a 100 %, its numbers shuffled 100 %."
    )
    assert drawing.numbers == {"first 3, a (%)": 100, "first 3, its numbers shuffled (%)": 100}
    np.testing.assert_allclose(found.get_ydata(), [100 / 1.5, 125 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(control.get_ydata(), [100 / 3, 200 / 3], rtol=1e-6)
    assert control.get_linewidth() > 2 * found.get_linewidth()


def test_the_networks_of_a_plane_stand_at_their_places() -> None:
    axes = DRAWN["two planes"]().axes[0]
    marks = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines]
    assert marks == [(0, 0), (2, 0), (0.8, 0.9)]
    assert [note.get_text() for note in axes.texts if note.get_text()[0].isalpha()] == [
        "base\n0.20",
        "its expert\n1.20",
        "average of eight\n2.20",
    ]


@pytest.mark.parametrize("loss", [0.7, 0.0, 1e-5])
def test_a_plane_without_any_slope_is_drawn_all_the_same(loss: float) -> None:
    level = Plane([0.0, 1.0], [0.0, 1.0], {"a": torch.full((2, 2), loss)}, {"base": (0.0, 0.0)}, {})
    assert png(draw_planes({"level": level}, {}).figure)


def test_norms_are_shares_of_the_bases_norm_in_per_cent() -> None:
    norms = layer_norms({**BASE, "scalar": torch.tensor(2.0)}, vectors(2))
    assert list(norms) == NAMES[:2]
    assert list(norms[NAMES[0]]) == ["layer1.weight", "layer2.weight", "layer3.weight"]
    tau = vectors(2)[NAMES[1]]["layer1.weight"]
    by_hand = 100 * np.sqrt((tau.numpy() ** 2).sum()) / np.sqrt(30)
    assert norms[NAMES[1]]["layer1.weight"] == pytest.approx(by_hand, rel=1e-5)


def test_cosines_are_those_of_all_layers_together() -> None:
    one, other = ({"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([y])} for y in (4.0, -4.0))
    expected = [[1, (9 - 16) / 25, 0.0], [(9 - 16) / 25, 1, 0.0], [0, 0, 0]]
    still = {"a": torch.zeros(1, 2), "b": torch.zeros(1)}
    torch.testing.assert_close(
        cosine_matrix({"one": one, "other": dict(reversed(other.items())), "still": still}), torch.tensor(expected)
    )


def test_spectra_are_shares_of_the_largest_singular_value() -> None:
    diagonal = {"w": torch.diag(torch.tensor([1.0, 4.0, 2.0]))}
    kernel = {"w": torch.arange(24.0).reshape(2, 3, 2, 2).sin()}
    found = spectra({"a": diagonal, "b": kernel}, "w")
    torch.testing.assert_close(found["a"], torch.tensor([1, 0.5, 0.25]))
    values = np.linalg.svd(kernel["w"].numpy().reshape(2, 12), compute_uv=False)
    np.testing.assert_allclose(found["b"], values / values[0], rtol=1e-5)
