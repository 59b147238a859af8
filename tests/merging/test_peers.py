from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import METHODS, Dare, IsoC, Layer, TaskArithmetic, Ties, TsvM, merge
from apgd_teach.merging.checkpoint import InMemory
from apgd_teach.merging.engine import Inputs, run

PEERS = (TaskArithmetic, Ties, Dare, TsvM, IsoC)

# (task, out, in): out < in, out > in, square, one row, one column.
SHAPES = [(1, 4, 6), (1, 6, 4), (2, 6, 4), (2, 1, 5), (3, 5, 5), (3, 7, 1), (5, 7, 9), (5, 12, 8)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def named(n_tasks: int, layer: str = "w") -> Layer:
    return Layer(layer, tuple("abcdefgh"[:n_tasks]))


def update(method, tau: Tensor, layer: Layer | None = None) -> Tensor:
    """M by hand; DARE is told names, as in a merge, so that a task keeps its draws when others come and go."""
    needs = isinstance(method, Ties | Dare)
    return (method(tau, layer or named(len(tau))) if needs else method(tau)).matrix


def low_rank(out: int, columns: int, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(out, rank, seed=seed, dtype=dtype) @ draw(rank, columns, seed=seed + 1000, dtype=dtype)


# The equations, written out once more in numpy


def literal_task_arithmetic(tau: np.ndarray, coefficient: float) -> np.ndarray:
    total = np.zeros(tau.shape[1:])
    for one in tau:
        total = total + one
    return coefficient * total


def literal_ties(tau: np.ndarray, coefficient: float, trim: float) -> np.ndarray:
    size = tau[0].size
    trimmed = np.zeros_like(tau)
    for task in range(len(tau)):
        least = np.sort(np.abs(tau[task]).ravel())[max(1, size - int(size * trim)) - 1]
        trimmed[task] = np.where(np.abs(tau[task]) >= least, tau[task], 0)
    merged = np.zeros(tau.shape[1:])
    for place in np.ndindex(merged.shape):
        values = [float(one[place]) for one in trimmed]
        elected = np.sign(sum(values))
        agreeing = [value for value in values if elected != 0 and np.sign(value) == elected]
        merged[place] = coefficient * sum(agreeing) / len(agreeing) if agreeing else 0
    return merged


def literal_dare(tau: np.ndarray, coefficient: float, drop: float, kept: np.ndarray) -> np.ndarray:
    merged = np.zeros(tau.shape[1:])
    for place in np.ndindex(merged.shape):
        for task in range(len(tau)):
            if kept[(task, *place)]:
                merged[place] += coefficient * tau[(task, *place)] / (1 - drop)
    return merged


def literal_polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def literal_tsv_m(tau: np.ndarray, coefficient: float) -> np.ndarray:
    n_tasks, out, columns = tau.shape
    each = min(out, columns) // n_tasks
    u, v, s = np.zeros((out, n_tasks * each)), np.zeros((columns, n_tasks * each)), np.zeros(n_tasks * each)
    for task in range(n_tasks):
        left, values, right = np.linalg.svd(tau[task], full_matrices=False)
        for k in range(each):
            u[:, task * each + k] = left[:, k]
            v[:, task * each + k] = right[k, :]
            s[task * each + k] = values[k]
    return coefficient * literal_polar(u) @ np.diag(s) @ literal_polar(v).T


def literal_iso_c(tau: np.ndarray, coefficient: float) -> np.ndarray:
    left, values, right = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    return coefficient * left @ np.diag(np.full(len(values), values.mean())) @ right


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-12) -> None:
    assert tuple(found.shape) == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=tolerance * scale)


coefficients = pytest.mark.parametrize("coefficient", [1.0, 0.3, -2])
shapes = pytest.mark.parametrize("shape", SHAPES)


@coefficients
@shapes
def test_task_arithmetic_is_its_equation(shape, coefficient: float) -> None:
    tau = draw(*shape)
    close(update(TaskArithmetic(coefficient), tau), literal_task_arithmetic(tau.numpy(), coefficient))


@coefficients
@shapes
@pytest.mark.parametrize("trim", [0.01, 0.2, 0.5, 1])
def test_ties_is_its_three_steps(shape, coefficient: float, trim: float) -> None:
    tau = draw(*shape)
    close(update(Ties(coefficient, trim), tau), literal_ties(tau.numpy(), coefficient, trim))


@coefficients
@shapes
@pytest.mark.parametrize("drop", [0, 0.4, 0.9])
def test_dare_is_its_equation(shape, coefficient: float, drop: float) -> None:
    tau = draw(*shape)
    # What is kept of ones on their own is kept of the task vectors together.
    ones = [update(Dare(1.0, drop, seed=3), torch.ones(1, *shape[1:]), Layer("w", (name,))) for name in "abcde"]
    kept = np.stack([one.numpy() != 0 for one in ones[: len(tau)]])
    close(update(Dare(coefficient, drop, seed=3), tau), literal_dare(tau.numpy(), coefficient, drop, kept))


@coefficients
@pytest.mark.parametrize("shape", [one for one in SHAPES if one[0] <= min(one[1:])])
def test_tsv_m_is_its_equation(shape, coefficient: float) -> None:
    tau = draw(*shape)
    close(update(TsvM(coefficient), tau), literal_tsv_m(tau.numpy(), coefficient), 1e-10)


@coefficients
@shapes
def test_iso_c_is_its_equation(shape, coefficient: float) -> None:
    tau = draw(*shape)
    close(update(IsoC(coefficient), tau), literal_iso_c(tau.numpy(), coefficient), 1e-10)


@pytest.mark.parametrize("method", [one() for one in PEERS], ids=lambda one: one.name)
@pytest.mark.parametrize("shape", [(2, 30, 50), (3, 50, 30), (5, 40, 40)])
def test_single_precision_agrees_with_double(method, shape) -> None:
    tau = draw(*shape).float()
    single, double = update(method, tau), update(method, tau.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    # The polar factor divides by the smallest singular value: hence not the last digits of float32.
    assert float((single.double() - double).norm() / double.norm()) < 1e-4
    assert torch.equal(single == 0, double == 0)


# What they have in common


def test_each_has_its_name_in_the_list() -> None:
    for one in PEERS:
        assert METHODS[one.name] is one
    assert {one.name for one in PEERS} == {"task_arithmetic", "ties", "dare", "tsv_m", "iso_c"}


@pytest.mark.parametrize("name", [one.name for one in PEERS])
def test_the_order_of_the_experts_decides_nothing(base, experts, name: str) -> None:
    one, other = merge(base, experts, name), merge(base, dict(reversed(experts.items())), name)
    for key in base:
        assert one.state_dict[key].numpy().tobytes() == other.state_dict[key].numpy().tobytes()
    assert one.audit.to_json() == other.audit.to_json()
    assert not torch.equal(one.state_dict["conv.weight"], base["conv.weight"])


@pytest.mark.parametrize("method", [TaskArithmetic(), Ties(trim=0.5), TsvM(), IsoC()], ids=lambda one: one.name)
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_by_hand_it_decides_no_more_than_rounding(method, order) -> None:
    tau = draw(3, 7, 6)
    torch.testing.assert_close(update(method, tau[list(order)]), update(method, tau), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [one() for one in PEERS], ids=lambda one: one.name)
@pytest.mark.parametrize("shape", [(3, 9, 12), (3, 12, 9), (4, 3, 5)])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_task_that_did_not_move_changes_nothing(method, shape, place: int) -> None:
    tau, names = draw(*shape), [*"abcd"][: shape[0]]
    where = place % (shape[0] + 1)
    more = torch.cat([tau[:where], torch.zeros(1, *shape[1:], dtype=tau.dtype), tau[where:]])
    layer = Layer("w", (*names[:where], "frozen", *names[where:]))
    torch.testing.assert_close(
        update(method, more, layer), update(method, tau, Layer("w", tuple(names))), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("method", [one() for one in PEERS], ids=lambda one: one.name)
def test_where_nothing_moved_nothing_moves(method) -> None:
    for n_tasks in (1, 3):
        assert torch.equal(update(method, torch.zeros(n_tasks, 3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("name", [one.name for one in PEERS])
def test_an_expert_with_a_frozen_layer_can_be_merged(base, experts, name: str) -> None:
    experts["ben"]["linear.weight"] = base["linear.weight"].clone()
    merged = merge(base, experts, name)
    assert all(torch.isfinite(one).all() for one in merged.state_dict.values())
    without = merge(base, {key: experts[key] for key in ("ada", "cy")}, name)
    assert torch.equal(merged.state_dict["linear.weight"], without.state_dict["linear.weight"])


@settings(max_examples=40, deadline=None)
@given(power=st.integers(-20, 20), sign=st.sampled_from([-1, 1]), seed=st.integers(0, 1000), at=st.integers(0, 7))
def test_longer_task_vectors_make_a_longer_update(power: int, sign: int, seed: int, at: int) -> None:
    # Powers of two, so that no rounding makes two entries equal that TIES has to tell apart.
    tau, scale = draw(*SHAPES[at], seed=seed), sign * 2.0**power
    for one in PEERS:
        expected = scale * update(one(), tau)
        torch.testing.assert_close(update(one(), scale * tau), expected, rtol=1e-6, atol=1e-9 * abs(scale))


@pytest.mark.parametrize("one", PEERS, ids=lambda one: one.name)
def test_the_coefficient_multiplies_and_does_nothing_else(one) -> None:
    tau = draw(3, 6, 5)
    torch.testing.assert_close(update(one(coefficient=0.7), tau), 0.7 * update(one(coefficient=1.0), tau))
    assert not update(one(coefficient=0), tau).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from([(2, 6, 4), (3, 5, 5), (3, 6, 9)]))
def test_the_spectral_methods_do_not_see_the_axes(seed: int, shape) -> None:
    # Turn inputs and outputs: the update turns with them. What works entry by entry cannot do that.
    tau = draw(*shape, seed=seed)
    out, into = (torch.linalg.qr(draw(size, size, seed=seed + 1))[0] for size in shape[1:])
    for method in (TsvM(), IsoC()):
        torch.testing.assert_close(
            update(method, out @ tau @ into), out @ update(method, tau) @ into, atol=1e-6, rtol=0
        )
    assert not torch.allclose(update(Ties(), out @ tau @ into), out @ update(Ties(), tau) @ into, atol=1e-3)


@pytest.mark.parametrize("method", [one() for one in PEERS], ids=lambda one: one.name)
def test_what_a_method_is_given_it_leaves_as_it_was(method) -> None:
    tau, thresholds = draw(3, 4, 5), torch.tensor([0.1, 0.2, 0.3])
    before = tau.clone(), thresholds.clone()
    result = update(method, tau, Layer("w", ("a", "b", "c"), thresholds))
    assert torch.equal(tau, before[0])
    assert torch.equal(thresholds, before[1])
    result.zero_()
    assert torch.equal(tau, before[0])


@pytest.mark.parametrize("name", [one.name for one in PEERS])
@pytest.mark.parametrize("lengths", [(-3e38, 3e38), (-1e38, -2e38)])
def test_task_vectors_that_overflow_get_the_sentence_of_every_method(name: str, lengths) -> None:
    # Of each, τ is infinite for one expert, or finite and too long for a singular value of it to be.
    base = {"w": torch.full((3, 4), 1e38 if lengths[1] < 0 else 3e38)}
    experts = {key: {"w": torch.full((3, 4), length)} for key, length in zip("ab", lengths, strict=True)}
    with pytest.raises(MergeError, match=f"method '{name}' returned NaN or infinity for tensor 'w'"):
        merge(base, experts, name, coefficient=1)


@pytest.mark.parametrize("one", PEERS, ids=lambda one: one.name)
def test_every_fact_of_the_audit_is_explained_where_the_method_is(base, experts, one) -> None:
    rows = {row.name: row for row in merge(base, experts, one.name).audit.rows}
    own = set(one()(draw(3, 4, 4)).facts)
    assert own
    for fact in own:
        assert f'"{fact}"' in one.__doc__
        value = rows["conv.weight"].facts[fact]
        assert isinstance(value, float | int) or len(value) == 3


# One expert


ALONE_RETURNS = [TaskArithmetic(1.0), Ties(1.0, trim=1), Dare(1.0, drop=0), TsvM(1.0)]
ALONE_DOES_NOT = [Ties(1.0), Dare(1.0), IsoC(1.0), TaskArithmetic()]


@pytest.mark.parametrize("method", ALONE_RETURNS, ids=lambda one: one.name)
def test_one_expert_comes_back(base, experts, method) -> None:
    merged = merge(base, {"ada": experts["ada"]}, method).state_dict
    for key, tensor in merged.items():
        torch.testing.assert_close(tensor, experts["ada"][key], rtol=0, atol=2e-6)
    assert not torch.allclose(merged["conv.weight"], base["conv.weight"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ALONE_DOES_NOT, ids=lambda one: one.name)
def test_one_expert_does_not_come_back_where_nobody_says_so(base, experts, method) -> None:
    merged = merge(base, {"ada": experts["ada"]}, method).state_dict
    assert not torch.allclose(merged["conv.weight"], experts["ada"]["conv.weight"], rtol=0, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), out=st.integers(1, 8), columns=st.integers(1, 8), rank=st.integers(1, 8))
def test_one_matrix_of_any_rank_comes_back(seed: int, out: int, columns: int, rank: int) -> None:
    tau = low_rank(out, columns, rank, seed).unsqueeze(0)
    for method in ALONE_RETURNS:
        torch.testing.assert_close(update(method, tau), tau[0], rtol=0, atol=1e-11)


# Task arithmetic


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 4, 5, 8])
def test_a_share_of_task_arithmetic_is_the_average(base, n_tasks: int) -> None:
    experts = {
        f"{place}": {
            key: one + draw(*one.shape, seed=place, dtype=torch.float32) if one.is_floating_point() else one
            for key, one in base.items()
        }
        for place in range(n_tasks)
    }
    one, other = merge(base, experts, "task_arithmetic", coefficient=1 / n_tasks), merge(base, experts)
    for key in base:
        if n_tasks in (1, 2, 4, 8):  # 1/T is exact
            assert torch.equal(one.state_dict[key], other.state_dict[key])
        else:
            torch.testing.assert_close(one.state_dict[key], other.state_dict[key], rtol=1e-6, atol=1e-6)


# TIES


def column(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("values", "merged"),
    [
        ((5.0, -2.0, -2.0), 5.0),  # by mass, where counting heads would elect the other
        ((-5.0, 2.0, 2.0), -5.0),
        ((1.0, 3.0, -2.0, 0.0), 2.0),  # a mean over the two that agree: not over three, nor four
        ((1.0, 1.0, 1.0), 1.0),  # a mean and no sum
        ((1.0, -1.0), 0.0),  # no sign is elected
        ((0.0, 0.0), 0.0),
        ((0.0, 2.0), 2.0),  # a zero has no vote and no share
    ],
)
def test_a_sign_is_elected_and_its_voters_are_averaged(values, merged: float) -> None:
    assert update(Ties(trim=1), column(*values)).item() == merged


def test_what_is_trimmed_has_no_vote() -> None:
    # −2 and −2 would win against 3, but are not among the largest of theirs.
    tau = torch.tensor([[[3.0, 0.0]], [[-2.0, 9.0]], [[-2.0, 9.0]]])
    assert update(Ties(trim=1), tau).tolist() == [[-2.0, 9.0]]
    assert update(Ties(), tau, Layer("w", ("a", "b", "c"), torch.tensor([1.0, 9.0, 9.0]))).tolist() == [[3.0, 9.0]]


def test_the_audit_says_what_was_kept_and_who_won() -> None:
    tau = torch.tensor([[[3.0, 1.0, 0.0, 5.0]], [[-2.0, 1.0, 0.0, 0.1]]])
    facts = Ties(trim=1)(tau).facts
    assert facts["kept"] == (0.75, 0.75)
    assert facts["elected"] == pytest.approx((1.0, 2 / 3))
    assert Ties(trim=1)(column(1.0, -1.0)).facts["elected"] == (0.0, 0.0)  # nobody won
    assert Ties(trim=0.25)(tau).facts["kept"] == (0.5, 0.5)  # one more than the share, as published


def literal_ties_of_a_network(task_vectors: dict[str, np.ndarray], coefficient: float, trim: float) -> np.ndarray:
    """All layers of all tasks in one long row per task."""
    flat = np.concatenate([one.reshape(len(one), -1) for one in task_vectors.values()], axis=1)
    return literal_ties(flat[:, None, :], coefficient, trim)[0]


@pytest.mark.parametrize("trim", [0.01, 0.1, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_trimming_is_over_all_merged_layers_together(trim: float, ties: bool) -> None:
    draws = torch.Generator().manual_seed(7)
    shapes = {"a": (6, 5), "b": (4, 2, 3, 3), "c": (3, 40)}
    # Layers of different lengths: trimmed each on its own, "c" would keep far more and "a" far fewer.
    lengths = {"a": 8, "b": 4, "c": 1}
    tau = {}
    for key, shape in shapes.items():
        values = torch.randn(3, *shape, generator=draws) * lengths[key]
        tau[key] = values.round() if ties else values
    base = {key: torch.zeros(shape) for key, shape in shapes.items()} | {"bias": torch.zeros(4)}
    experts = {
        name: {**{key: tau[key][place] for key in shapes}, "bias": torch.full((4,), 100.0)}
        for place, name in enumerate("xyz")
    }
    merged = merge(base, experts, "ties", coefficient=0.7, trim=trim)
    expected = literal_ties_of_a_network({key: one.double().numpy() for key, one in tau.items()}, 0.7, trim)
    found = np.concatenate([merged.state_dict[key].double().numpy().ravel() for key in shapes])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    if trim == 0.2 and not ties:
        kept = {row.name: row.facts.get("kept") for row in merged.audit.rows}
        assert min(kept["a"]) > 0.5
        assert max(kept["c"]) < 0.1


# DARE


def test_its_expectation_is_task_arithmetic() -> None:
    tau, drop, times = draw(3, 5, 6), 0.9, 2000
    mean = torch.stack([update(Dare(0.3, drop, seed), tau) for seed in range(times)]).mean(dim=0)
    error = 0.3 * (tau.square().sum(dim=0) * drop / (1 - drop) / times).sqrt()
    away = (mean - update(TaskArithmetic(0.3), tau)) / error
    assert float(away.abs().max()) < 4.5
    assert 0.5 < float(away.square().mean()) < 2  # neither biased nor more certain than chance allows


def test_what_is_kept_is_divided_by_the_share_that_is_kept() -> None:
    tau = draw(1, 200, 200)
    merged = update(Dare(1.0, drop=0.75), tau)
    kept = merged != 0
    torch.testing.assert_close(merged[kept], 4 * tau[0][kept])
    assert abs(float(kept.double().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 40_000)
    assert Dare(1.0, drop=0.75)(tau, named(1)).facts["kept"] == (float(kept.double().mean()),)


def test_what_is_dropped_hangs_on_the_seed_the_layer_and_the_expert_alone() -> None:
    ones = torch.ones(1, 30, 30)

    def kept(seed: int, layer: str, expert: str, like: Tensor = ones) -> Tensor:
        return update(Dare(1.0, 0.5, seed), like, Layer(layer, (expert,))) != 0

    first = kept(0, "w", "a")
    assert torch.equal(first, kept(0, "w", "a"))
    assert torch.equal(first, kept(0, "w", "a", ones.double() * 3))
    for other in (kept(1, "w", "a"), kept(0, "v", "a"), kept(0, "w", "b"), kept(0, "", "wa"), kept(-1, "w", "a")):
        # Independent: half of the entries agree, give or take five standard deviations.
        assert abs(float((first == other).double().mean()) - 0.5) < 5 * 0.5 / 30


def test_one_draw_of_dare_is_the_sum_of_each_experts_own() -> None:
    tau = draw(3, 8, 9)
    parts = [update(Dare(), tau[place : place + 1], Layer("w", (name,))) for place, name in enumerate("abc")]
    torch.testing.assert_close(update(Dare(), tau), sum(parts))


def test_neither_the_state_of_chance_nor_the_order_of_the_work_matters(base, experts) -> None:
    one = merge(base, experts, "dare", drop=0.5).state_dict
    torch.manual_seed(99)
    state = torch.get_rng_state()
    found: dict[str, Tensor] = {}
    inputs = Inputs(InMemory(base), {name: InMemory(states) for name, states in experts.items()})
    run(inputs, Dare(drop=0.5), found.__setitem__, workers=3)
    assert all(torch.equal(one[key], found[key]) for key in base)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_names_each_task_still_has_draws_of_its_own() -> None:
    merged = Dare(1.0, 0.5)(torch.stack([torch.ones(30, 30), 10 * torch.ones(30, 30)])).matrix
    assert set(merged.unique().tolist()) == {0.0, 2.0, 20.0, 22.0}


# TSV-M


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from(SHAPES))
def test_its_singular_values_are_those_that_the_tasks_brought(seed: int, shape) -> None:
    tau = draw(*shape, seed=seed)
    most = min(shape[1:])
    each = max(1, most // shape[0])
    brought = torch.linalg.svdvals(tau)[:, :each].flatten().sort(descending=True).values[:most]
    found = torch.linalg.svdvals(update(TsvM(), tau))
    torch.testing.assert_close(found[: len(brought)], brought, rtol=0, atol=1e-8)
    assert float(found[len(brought) :].sum()) < 1e-8


def test_tasks_that_do_not_meet_are_added_up_whole() -> None:
    tau = torch.zeros(2, 6, 8, dtype=torch.float64)
    tau[0, :3, :4], tau[1, 3:, 4:] = draw(3, 4, seed=1), draw(3, 4, seed=2)
    found = TsvM()(tau)
    torch.testing.assert_close(found.matrix, tau.sum(dim=0), rtol=0, atol=1e-12)
    assert found.facts["rank"] == (3, 3)
    assert found.facts["overlap_out"] == pytest.approx(1)
    assert found.facts["overlap_in"] == pytest.approx(1)


def test_with_more_tasks_than_directions_the_longest_first_directions_stay() -> None:
    tau = draw(5, 3, 7) * torch.tensor([1.0, 100.0, 2.0, 50.0, 80.0], dtype=torch.float64)[:, None, None]
    found = TsvM()(tau)
    assert found.facts["rank"] == (0, 1, 0, 1, 1)
    torch.testing.assert_close(found.matrix, update(TsvM(), tau[[1, 3, 4]]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(6, 9), (60, 40)])
def test_a_task_of_low_rank_brings_no_directions_that_it_has_not(dtype: torch.dtype, size) -> None:
    tau = torch.stack([low_rank(*size, 1, seed=1, dtype=dtype), low_rank(*size, 2, seed=2, dtype=dtype)])
    found = TsvM()(tau)
    assert found.facts["rank"] == (1, 2)
    values = torch.linalg.svdvals(found.matrix)
    brought = torch.cat([torch.linalg.svdvals(tau[0])[:1], torch.linalg.svdvals(tau[1])[:2]]).sort(descending=True)
    torch.testing.assert_close(values[:3], brought.values, rtol=1e-4, atol=0)
    assert float(values[3]) < 1e-4 * float(values[0])
    # It writes and reads where the tasks do, and nowhere else.
    spanned = torch.linalg.svd(torch.cat([*tau], dim=1), full_matrices=False)[0][:, :3]
    assert float((found.matrix - spanned @ (spanned.mT @ found.matrix)).norm() / found.matrix.norm()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twins_count_once(dtype: torch.dtype) -> None:
    one = low_rank(8, 10, 3, seed=4, dtype=dtype)
    found = TsvM()(torch.stack([one, one]))
    torch.testing.assert_close(found.matrix, one, rtol=1e-4, atol=1e-4)
    assert found.facts["overlap_out"] == pytest.approx(2, rel=1e-4)


# Iso-C


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from(SHAPES))
def test_all_its_singular_values_are_their_mean_and_its_vectors_those_of_the_sum(seed: int, shape) -> None:
    tau = draw(*shape, seed=seed)
    total, found = tau.sum(dim=0), update(IsoC(2.0), tau)
    values = torch.linalg.svdvals(total)
    torch.testing.assert_close(torch.linalg.svdvals(found), torch.full_like(values, 2 * float(values.mean())))
    # M Sᵀ = λσ̄ U S Uᵀ: symmetric, with the singular values of the sum as eigenvalues.
    product = found @ total.mT / (2 * values.mean())
    torch.testing.assert_close(product, product.mT, rtol=0, atol=1e-8)
    eigenvalues = torch.linalg.eigvalsh(product).flip(0)[: len(values)]
    torch.testing.assert_close(eigenvalues, values, rtol=0, atol=1e-8)


def test_it_flattens_the_sum_and_not_the_mean() -> None:
    one = draw(1, 4, 6)
    torch.testing.assert_close(update(IsoC(), one.repeat(3, 1, 1)), 3 * update(IsoC(), one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(6, 9), (60, 40), (300, 200)])
def test_a_sum_of_low_rank_gets_no_directions_that_it_has_not(dtype: torch.dtype, size) -> None:
    tau = torch.stack([low_rank(*size, 1, seed=1, dtype=dtype), low_rank(*size, 2, seed=2, dtype=dtype)])
    found = IsoC()(tau)
    assert found.facts["rank"] == 3
    values, before = torch.linalg.svdvals(found.matrix), torch.linalg.svdvals(tau.sum(dim=0))
    torch.testing.assert_close(values[:3], before[:3].mean().repeat(3), rtol=1e-4, atol=0)
    assert float(values[3]) < 1e-4 * float(values[0])


def test_a_single_direction_is_left_as_it_is() -> None:
    one = low_rank(5, 7, 1, seed=3)
    torch.testing.assert_close(update(IsoC(), one.unsqueeze(0)), one)


def test_tasks_that_cancel_leave_nothing() -> None:
    one = draw(4, 6)
    assert not update(IsoC(), torch.stack([one, -one])).any()


def test_its_audit_says_how_peaked_the_sum_was() -> None:
    tau = torch.diag(torch.tensor([9.0, 2.0, 1.0])).unsqueeze(0)
    facts = IsoC()(tau).facts
    assert facts["rank"] == 3
    assert (facts["mean_value"], facts["largest_value"]) == (pytest.approx(4), pytest.approx(9))


# Settings


FINITE = "a finite number"


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        *[(one.name, {"coefficient": math.nan}, f"coefficient = nan; give {FINITE}.") for one in PEERS],
        *[(one.name, {"coefficient": -math.inf}, f"coefficient = -inf; give {FINITE}.") for one in PEERS],
        *[(one.name, {"coefficient": True}, f"coefficient = True; give {FINITE}.") for one in PEERS],
        *[(one.name, {"coefficient": "0.3"}, f"coefficient = '0.3'; give {FINITE}.") for one in PEERS],
        *[(one.name, {"coefficient": None}, f"coefficient = None; give {FINITE}.") for one in PEERS],
        ("ties", {"trim": 0}, "trim = 0; give a number above 0 and of at most 1."),
        ("ties", {"trim": -0.2}, "trim = -0.2; give a number above 0 and of at most 1."),
        ("ties", {"trim": 20}, "trim = 20; give a number above 0 and of at most 1."),
        ("ties", {"trim": True}, "trim = True; give a finite number above 0 and of at most 1."),
        ("ties", {"trim": math.nan}, "trim = nan; give a finite number above 0 and of at most 1."),
        ("dare", {"drop": 1}, "drop = 1; give a number of at least 0 and below 1."),
        ("dare", {"drop": -0.1}, "drop = -0.1; give a number of at least 0 and below 1."),
        ("dare", {"drop": False}, "drop = False; give a finite number of at least 0 and below 1."),
        ("dare", {"seed": 0.5}, "seed = 0.5; give a whole number."),
        ("dare", {"seed": True}, "seed = True; give a whole number."),
        ("dare", {"seed": "one"}, "seed = 'one'; give a whole number."),
    ],
)
def test_a_bad_setting_gets_its_sentence(base, experts, name: str, wrong: dict[str, object], sentence: str) -> None:
    make: Callable[..., object] = METHODS[name]
    for attempt in (lambda: make(**wrong), lambda: merge(base, experts, name, **wrong)):
        with pytest.raises(MergeError) as raised:
            attempt()
        assert str(raised.value) == f"method '{name}' has {sentence}"


def test_settings_at_their_ends_are_taken(base, experts) -> None:
    for method in (Ties(0, 1), Ties(-1, 1e-9), Dare(2, 0, -5), Dare(drop=0.999), TsvM(0), IsoC(10**30)):
        assert all(torch.isfinite(one).all() for one in merge(base, experts, method).state_dict.values())


def test_the_defaults_are_those_of_the_papers() -> None:
    assert (TaskArithmetic(), Ties(), Dare()) == (TaskArithmetic(0.3), Ties(1.0, 0.2), Dare(0.3, 0.9, 0))
    assert (TsvM(), IsoC()) == (TsvM(1.0), IsoC(1.0))
