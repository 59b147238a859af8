from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import FASHION, NAMES, TITLES, mistaken, perfect, untrained_pool

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.mistakes import KINDS, Mistakes, draw_confusion, draw_examples, find_mistakes
from apgd_teach.merging import merge

CLASSES = ("a", "b", "c")
HAND = Mistakes(
    title="letters",
    classes=CLASSES,
    labels=torch.tensor([0, 0, 0, 0, 1, 1]),
    predictions={
        "base": torch.tensor([0, 1, 1, 2, 0, 1]),
        "merged": torch.tensor([0, 0, 1, 1, 1, 0]),
        "expert": torch.tensor([0, 0, 0, 1, 1, 1]),
    },
    shown={n: torch.full((28, 28), n / 10) for n in range(6)},
)


def test_a_confusion_is_the_share_of_each_true_class() -> None:
    table = HAND.confusion("merged")
    torch.testing.assert_close(table[:2], torch.tensor([[50.0, 50, 0], [50, 50, 0]]).double())
    assert torch.isnan(table[2]).all()
    torch.testing.assert_close(HAND.confusion("base")[0], torch.tensor([25.0, 50, 25]).double())


def test_broken_and_saved_images_by_hand() -> None:
    assert HAND.images("broken") == [2, 5]
    assert HAND.images("saved") == [1, 4]
    assert HAND.accuracy("merged") == pytest.approx(50)
    assert HAND.accuracy("expert") == pytest.approx(100 * 5 / 6)


# Of real networks


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(2)


@pytest.fixture(scope="module")
def evaluator(pool) -> Evaluator:
    return Evaluator(pool, images=120)


@pytest.fixture(scope="module")
def found(pool, evaluator) -> dict[str, Mistakes]:
    return find_mistakes(evaluator, pool.base, merge(pool.base, pool.experts).state_dict)


def test_right_and_wrong_are_those_of_the_evaluator(pool, evaluator, found) -> None:
    merged = merge(pool.base, pool.experts).state_dict
    assert list(found) == list(pool.tasks)
    for task, one in found.items():
        rights = {
            name: evaluator.score(state, task).right
            for name, state in (("base", pool.base), ("merged", merged), ("expert", pool.experts[task]))
        }
        for name, right in rights.items():
            assert torch.equal(one.predictions[name] == one.labels, right)
        assert one.images("broken") == [n for n in range(120) if rights["expert"][n] and not rights["merged"][n]]
        assert one.images("saved") == [n for n in range(120) if rights["merged"][n] and not rights["base"][n]]
        assert (one.title, one.classes) == (TITLES[task], pool.tasks[task].classes)


def test_the_pictures_kept_are_the_tasks_own(pool, found) -> None:
    for task, one in found.items():
        wanted = {n for kind in KINDS for n in one.images(kind)[:8]}
        assert set(one.shown) == wanted
        for n, picture in one.shown.items():
            assert torch.equal(picture, pool.tasks[task].test.images[n, 0])


def test_the_split_is_the_evaluators(pool) -> None:
    one = find_mistakes(Evaluator(pool, images=30, split="validation"), pool.base, pool.base, [NAMES[0]])
    assert torch.equal(one[NAMES[0]].labels, pool.tasks[NAMES[0]].validation.first(30).labels)


def test_another_network_or_task_is_refused(pool, evaluator) -> None:
    with pytest.raises(ApgdTeachError, match="this pool has no task 'cats'; it has: digits-upright"):
        find_mistakes(evaluator, pool.base, pool.base, ["cats"])
    with pytest.raises(ApgdTeachError, match="not one of the network 'mlp': 'extra' is missing there and has shape"):
        find_mistakes(evaluator, pool.base, {**pool.base, "extra": torch.ones(1)})


# Confusions


def test_the_maps_stand_side_by_side_as_measured() -> None:
    one = mistaken()
    sheet = np.ma.filled(draw_confusion({"t": one}, task="t").figure.axes[0].images[0].get_array(), np.nan)
    assert sheet.shape == (10, 32)
    for left, name in zip((0, 11, 22), ("base", "merged", "expert"), strict=True):
        np.testing.assert_array_equal(sheet[:, left : left + 10], one.confusion(name).numpy())
    assert np.isnan(sheet[:, [10, 21]]).all()


def test_numbers_are_written_where_they_are_not_small() -> None:
    axes = draw_confusion({"t": mistaken()}, task="t").figure.axes[0]
    sheet = np.ma.filled(axes.images[0].get_array(), np.nan)
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    assert len(cells) == (sheet >= 5).sum() > 30
    for (column, row), text in cells.items():
        assert text == f"{sheet[int(row), int(column)]:.0f}"


def test_every_map_is_headed_by_its_network_and_accuracy_and_names_the_classes() -> None:
    one = mistaken()
    axes = draw_confusion({"t": one}, task="t", networks=("merged", "expert")).figure.axes[0]
    headings = [text.get_text() for text in axes.texts if "%" in text.get_text()]
    assert headings == [f"merged: {one.accuracy('merged'):.1f} %", f"its own expert: {one.accuracy('expert'):.1f} %"]
    names = [name.split("/")[0] for name in FASHION]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == 2 * names
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names


def test_the_words_name_the_commonest_confusion_of_the_merged_network() -> None:
    one = mistaken()
    table = one.confusion("merged").numpy() - 1000 * np.eye(10)
    row, column = np.unravel_index(table.argmax(), table.shape)
    drawing = draw_confusion({"t": one}, task="t")
    shares = [float(one.confusion(name)[row, column]) for name in ("merged", "base", "expert")]
    assert f"{FASHION[row]} taken for {FASHION[column]}: {shares[0]:.1f} % of that class" in drawing.words
    assert f"the base has {shares[1]:.1f} % and the expert {shares[2]:.1f} %" in drawing.words
    assert f"names {one.accuracy('merged'):.1f} % of 300 images rightly" in drawing.words
    assert drawing.numbers["merged, commonest confusion (% of its class)"] == shares[0]
    assert drawing.numbers["base, accuracy (%)"] == one.accuracy("base")


def test_a_class_without_an_image_is_confused_with_none() -> None:
    drawing = draw_confusion({"t": HAND}, task="t")
    assert "a taken for b: 50.0 % of that class, where the base has 50.0 % and the expert 25.0 %." in drawing.words


def test_a_network_without_mistakes_is_said_to_have_none() -> None:
    assert "The merged network confuses no two classes." in draw_confusion({"t": perfect()}, task="t").words


# Examples


@pytest.mark.parametrize(("kind", "names"), [("broken", ["a → b", "b → a"]), ("saved", ["a → b", "b → a"])])
def test_examples_show_the_picture_under_true_and_wrong_class(kind: str, names: list[str]) -> None:
    drawing = draw_examples({"t": HAND}, task="t", kind=kind)
    axes = drawing.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == names
    sheet = np.ma.filled(axes.images[0].get_array(), np.nan)
    for text, n in zip(axes.texts, HAND.images(kind), strict=True):
        x, y = text.get_position()
        picture = sheet[int(y) + 1 : int(y) + 29, int(x) - 14 : int(x) + 14]
        assert (picture == np.float64(HAND.shown[n][0, 0])).all()
    assert np.isfinite(sheet).sum() == 2 * 28 * 28
    assert drawing.photo


def test_the_words_of_examples_list_them_and_count_both_kinds() -> None:
    broken = draw_examples({"t": HAND}, task="t", kind="broken").words
    assert broken == (
        "Of 6 images of letters there are 2 that the expert names rightly and the merged network does not (saved: 2). "
        "The first, with the true class and the one that the merged network gives: image 2, a → b; image 5, b → a."
    )
    saved = draw_examples({"t": HAND}, task="t", kind="saved").words
    assert "2 that the base names wrongly and the merged network rightly (broken: 2)" in saved
    assert "the one that the base gives: image 1, a → b; image 4, b → a." in saved


def test_no_more_than_eight_examples_are_shown() -> None:
    one = mistaken()
    assert len(one.images("broken")) > 8
    drawing = draw_examples({"t": one}, task="t", kind="broken")
    assert len(drawing.figure.axes[0].texts) == 8
    assert drawing.words.count("→") == 8
    assert drawing.numbers["broken (images)"] == len(one.images("broken"))


def test_where_there_is_no_such_image_that_is_said() -> None:
    drawing = draw_examples({"t": perfect()}, task="t", kind="saved")
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["no such image"]
    assert drawing.words.endswith("there are 0 that the base names wrongly and the merged network rightly (broken: 0).")


def test_numbers_have_the_same_names_for_every_task_and_kind() -> None:
    both = {"t": mistaken(), "u": replace(perfect(), title="u")}
    examples = [draw_examples(both, task=task, kind=kind) for task in both for kind in KINDS]
    confusions = [draw_confusion(both, task=task) for task in both]
    assert len({tuple(one.numbers) for one in examples}) == 1
    assert len({tuple(one.numbers) for one in confusions}) == 1


def test_an_unknown_task_kind_or_network_is_refused() -> None:
    for draw in (draw_confusion, draw_examples):
        with pytest.raises(ApgdTeachError, match="no mistakes were looked for on the task 'u'; take one of: t"):
            draw({"t": HAND}, task="u")
    with pytest.raises(ApgdTeachError, match="no kind 'lost' of images; use one of: broken, saved"):
        draw_examples({"t": HAND}, task="t", kind="lost")
    for networks in (("average",), ()):
        with pytest.raises(ApgdTeachError, match="here; use some of: base, merged, expert"):
            draw_confusion({"t": HAND}, task="t", networks=networks)
