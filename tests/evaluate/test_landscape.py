from __future__ import annotations

import math

import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import Pool
from apgd_teach.landscape import Path, Plane, _between, _combined, loss_path, loss_plane
from apgd_teach.merging import fingerprint, merge

A, B, C = TASKS = ("digits-upright", "digits-noisy", "fashion-flipped")


@pytest.fixture(scope="session")
def quick(pool: Pool) -> Evaluator:
    return Evaluator(pool, images=60)


def flat(state) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


# Lines


def test_the_ends_of_a_line_are_the_networks_themselves_and_its_middle_is_their_average(pool, quick) -> None:
    path = loss_path(quick, pool.experts[A], pool.experts[C], [A, C], points=5)
    assert path.steps == [0, 0.25, 0.5, 0.75, 1]
    middle = merge(pool.base, {"a": pool.experts[A], "c": pool.experts[C]}).state_dict
    for task in (A, C):
        for place, state in ((0, pool.experts[A]), (2, middle), (-1, pool.experts[C])):
            score = quick.score(state, task)
            assert path.losses[task][place] == pytest.approx(score.loss, rel=1e-4)
            assert path.accuracies[task][place] == pytest.approx(score.accuracy, abs=1e-4)
        assert path.losses[task][0] == quick.score(pool.experts[A], task).loss
    assert path.losses[A][0] < path.losses[A][-1]
    assert path.losses[C][0] > path.losses[C][-1]


def test_a_quarter_of_the_way_is_three_parts_of_the_start(pool, quick) -> None:
    start, end = pool.experts[A], pool.experts[C]
    path = loss_path(quick, start, end, [A], points=5)
    there = {key: 0.75 * start[key] + 0.25 * end[key] for key in start}
    assert path.losses[A][1] == pytest.approx(quick.score(there, A).loss, rel=1e-5)


def test_a_line_from_a_network_to_itself_has_no_barrier(pool, quick) -> None:
    path = loss_path(quick, pool.base, pool.base, [A], points=3)
    assert path.barrier(A) == pytest.approx(0, abs=1e-5)


def test_units_in_another_order_compute_the_same_and_have_a_barrier_between_them(pool, quick) -> None:
    expert = pool.experts[A]
    order = torch.arange(512).flip(0)
    shuffled = {
        **expert,
        "layer1.weight": expert["layer1.weight"][order],
        "layer1.bias": expert["layer1.bias"][order],
        "layer2.weight": expert["layer2.weight"][:, order],
    }
    path = loss_path(quick, expert, shuffled, [A], points=3)
    assert path.losses[A][0] == pytest.approx(path.losses[A][-1], rel=1e-4)
    assert path.barrier(A) == pytest.approx(path.losses[A][1] - path.losses[A][0], rel=1e-3)
    assert path.barrier(A) > 0.1


def test_a_barrier_is_the_rise_above_the_straight_line_between_the_ends() -> None:
    path = Path([0, 0.25, 0.5, 1], {"up": [1.0, 2.0, 2.5, 3.0], "down": [3.0, 1.0, 0.5, 1.0]}, {})
    assert path.barrier("up") == 0.5
    assert path.barrier("down") == 0


def test_the_words_of_a_line_are_its_losses() -> None:
    path = Path([0, 0.5, 1], {"a": [1.0, 2.5, 0.25]}, {"a": [50.0, 10.0, 90.0]})
    assert path.words("a") == "1.00 at the start, 2.50 half-way, 0.25 at the end (nats)"


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_line_of_fewer_than_two_points_is_refused(pool, quick, points: int) -> None:
    with pytest.raises(ApgdTeachError, match=f"points must be at least 2, not {points}"):
        loss_path(quick, pool.base, pool.base, [A], points=points)
    with pytest.raises(ApgdTeachError, match=f"at least 2 points along each side, not {points}"):
        loss_plane(quick, pool.base, ("a", pool.experts[A]), ("b", pool.experts[B]), [A], points=points)


# Planes


def plane_of(pool, quick, first, second, points: int, border: float = 0.0, tasks=(A, C)) -> Plane:
    pair = ("first", first), ("second", second)
    return loss_plane(quick, pool.base, *pair, tasks, points=points, border=border, progress=False)


def test_the_three_networks_stand_where_their_distances_and_angle_put_them(pool, quick) -> None:
    plane = plane_of(pool, quick, pool.experts[A], pool.experts[C], points=2)
    u, v = flat(pool.experts[A]) - flat(pool.base), flat(pool.experts[C]) - flat(pool.base)
    (x1, y1), (x2, y2) = plane.places["first"], plane.places["second"]
    assert plane.places["base"] == (0, 0)
    assert y1 == 0
    assert x1 == pytest.approx(float(u.norm()), rel=1e-5)
    assert math.hypot(x2, y2) == pytest.approx(float(v.norm()), rel=1e-5)
    assert math.dist((x1, y1), (x2, y2)) == pytest.approx(float((u - v).norm()), rel=1e-5)
    assert x1 * x2 + y1 * y2 == pytest.approx(float(u @ v), rel=1e-4)
    assert y2 > 0


def test_the_corners_of_the_grid_are_the_networks(pool, quick) -> None:
    # The second lies straight above the first, so that all three stand on corners of a grid without a border.
    a, c, base = pool.experts[A], pool.experts[C], pool.base
    u, v = flat(a) - flat(base), flat(c) - flat(base)
    share = float(u @ v) / float(u @ u)
    above = {key: base[key] + (c[key] - base[key]) - share * (a[key] - base[key]) + (a[key] - base[key]) for key in a}
    plane = plane_of(pool, quick, a, above, points=2)
    for task in (A, C):
        for (row, column), state in {(0, 0): base, (0, 1): a, (1, 1): above}.items():
            assert float(plane.losses[task][row, column]) == pytest.approx(quick.score(state, task).loss, rel=1e-3)
    # And the fourth corner is the base moved by what lies between the other two.
    fourth = {key: base[key] + above[key] - a[key] for key in a}
    assert float(plane.losses[C][1, 0]) == pytest.approx(quick.score(fourth, C).loss, rel=1e-3)
    assert plane.losses[C][0, 0] != pytest.approx(float(plane.losses[C][1, 1]), rel=1e-2)


def test_a_point_of_the_grid_is_the_network_at_its_coordinates(pool, quick) -> None:
    plane = plane_of(pool, quick, pool.experts[A], pool.experts[C], points=3, border=0.25)
    base = flat(pool.base)
    u, v = flat(pool.experts[A]) - base, flat(pool.experts[C]) - base
    along = u / u.norm()
    across = v - (v @ along) * along
    across = across / across.norm()
    for row, column in ((0, 2), (2, 1), (1, 0)):
        weights = base + plane.x[column] * along + plane.y[row] * across
        parts = weights.float().split([tensor.numel() for tensor in pool.base.values()])
        state = {key: part.reshape(pool.base[key].shape) for (key, part) in zip(pool.base, parts, strict=True)}
        assert float(plane.losses[C][row, column]) == pytest.approx(quick.score(state, C).loss, rel=1e-3)
    assert torch.allclose(plane.mean, (plane.losses[A] + plane.losses[C]) / 2)


def test_the_border_is_the_same_on_every_side(pool, quick) -> None:
    plane = plane_of(pool, quick, pool.experts[A], pool.experts[C], points=2, border=0.5, tasks=(A,))
    xs, ys = zip(*plane.places.values(), strict=True)
    margin = 0.5 * max(max(xs) - min(xs), max(ys) - min(ys))
    assert plane.x == pytest.approx([min(xs) - margin, max(xs) + margin])
    assert plane.y == pytest.approx([min(ys) - margin, max(ys) + margin])


def test_networks_on_one_line_span_no_plane(pool, quick) -> None:
    expert = pool.experts[A]
    half = {key: 0.5 * pool.base[key] + 0.5 * expert[key] for key in expert}
    beyond = {key: pool.base[key] + 3 * (expert[key] - pool.base[key]) for key in expert}
    near = {key: pool.base[key] + 0.1 * (expert[key] - pool.base[key]) for key in expert}
    nearer = {key: pool.base[key] + 0.05 * (expert[key] - pool.base[key]) for key in expert}
    pairs = [(expert, expert), (expert, pool.base), (pool.base, expert), (expert, half), (half, beyond), (near, nearer)]
    for first, second in pairs:
        with pytest.raises(ApgdTeachError, match="lie on one line and span no plane"):
            plane_of(pool, quick, first, second, points=2)


@pytest.mark.parametrize("names", [("base", "b"), ("a", "base"), ("a", "a")])
def test_a_name_that_would_hide_another_network_is_refused(pool, quick, names: tuple[str, str]) -> None:
    first, second = zip(names, (pool.experts[A], pool.experts[C]), strict=True)
    with pytest.raises(ApgdTeachError, match="three networks of a plane need three names"):
        loss_plane(quick, pool.base, first, second, [A], points=2, progress=False)


def test_walks_change_no_network(pool, quick) -> None:
    states = [pool.base, *pool.experts.values()]
    before = [fingerprint(state) for state in states]
    loss_path(quick, pool.experts[A], pool.experts[C], [A], points=3)
    plane_of(pool, quick, pool.experts[A], pool.experts[C], points=2)
    assert [fingerprint(state) for state in states] == before


def test_counters_are_carried_along_and_not_interpolated() -> None:
    base = {"w": torch.zeros(2), "counter": torch.tensor(7)}
    end = {"w": torch.ones(2), "counter": torch.tensor(9)}
    for state in (_between(base, end, 0.5), _combined(base, [(0.25, {"w": end["w"]}), (0.25, {"w": end["w"]})])):
        assert state["w"].tolist() == [0.5, 0.5]
        assert state["counter"].dtype == torch.int64
        assert state["counter"].item() == 7


def test_the_words_of_a_plane_are_the_losses_of_its_three_networks_themselves(pool, quick) -> None:
    pair = ("a", pool.experts[A]), ("c", pool.experts[C])
    plane = loss_plane(quick, pool.base, *pair, [A, C], points=2, progress=False)
    states = {"base": pool.base, "a": pool.experts[A], "c": pool.experts[C]}
    expected = {name: (quick.score(one, A).loss + quick.score(one, C).loss) / 2 for name, one in states.items()}
    assert plane.at == pytest.approx(expected)
    assert plane.words() == ", ".join(f"{loss:.2f} at {name}" for name, loss in expected.items()) + " (nats)"


def test_a_bar_runs_while_a_plane_is_scored_and_is_gone_afterwards(pool, quick, capsys, monkeypatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    pair = ("a", pool.experts[A]), ("c", pool.experts[C])
    loss_plane(quick, pool.base, *pair, [A], points=2)
    written = capsys.readouterr().out
    assert "loss plane" in written
    assert written.rsplit("\r", 1)[-1].strip() == ""
    loss_plane(quick, pool.base, *pair, [A], points=2, progress=False)
    assert capsys.readouterr() == ("", "")
