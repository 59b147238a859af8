"""The method as a whole: its equations in numpy from τ to M, its promises, its facts, what a merge makes of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import METHODS, Apgd, ApgdPublished, IsoC, Layer, TaskAware, Wudi, merge
from apgd_teach.merging.apgd import reshaped
from apgd_teach.merging.objective import objective
from apgd_teach.merging.surrogate import surrogate, weights

GRANULARITIES = ("layer", "row", "full")
PLAIN: dict[str, Any] = {
    "granularity": "full",
    "solver": "exact",
    "protect": 0.34,
    "power": 2.0,
    "directions": 1.0,
    "filter": "cutoff",
    "strength": 0.0,
    "flatten": 0.0,
    "trim": 1.0,
    "coefficient": 0.3,
    "basis": "published",
    "steps": 60,
    "reach": None,
    "biases": "average",
}
"""Every setting, so that no test depends on a default."""

# (task, out, in): wide, tall, square, more tasks than directions, one task, one row, one column.
SHAPES = [(3, 6, 9), (3, 9, 6), (2, 7, 7), (6, 4, 5), (1, 4, 6), (3, 1, 5), (3, 5, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES)
granularities = pytest.mark.parametrize("granularity", GRANULARITIES)
solvers = pytest.mark.parametrize("solver", ["exact", "descent"])
kinds = st.fixed_dictionaries(
    {
        "granularity": st.sampled_from(GRANULARITIES),
        "solver": st.sampled_from(["exact", "descent"]),
        "protect": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        "power": st.sampled_from([0.0, 1.0, 2.0]),
        "directions": st.sampled_from([0.3, 1.0]),
        "filter": st.sampled_from(["time", "cutoff"]),
        "strength": st.sampled_from([1e-3, 0.5]),
        "flatten": st.sampled_from([0.0, 0.5]),
        "trim": st.sampled_from([0.4, 1.0]),
        "basis": st.sampled_from(["published", "weighted"]),
    }
)
small = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def apgd(**changed: Any) -> Apgd:
    return Apgd(**{**PLAIN, **changed})


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def task_vectors(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Of different lengths, as experts are."""
    return draw(*shape, seed=seed) * torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64)[:, None, None]


def close(found: Tensor, expected: Tensor | np.ndarray, tolerance: float = 1e-8) -> None:
    expected = torch.as_tensor(expected).to(found.dtype)
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(scale, 1e-300))


def total(coefficients: Tensor, matrices: Tensor) -> Tensor:
    return (coefficients[:, None, None] * matrices).sum(dim=0)


# The whole of it, once more in numpy


def literal(tau: np.ndarray, setting: dict[str, Any]) -> np.ndarray:
    """`full`, solved exactly: coefficients, shared subspace, closed form, trim, flattened spectrum."""
    tasks, out, columns = tau.shape
    size = min(out, columns)
    lengths = np.array([np.sqrt((one**2).sum()) for one in tau])
    coefficient = 1 / tasks if setting["coefficient"] is None else setting["coefficient"]
    lam = np.minimum(1, coefficient * np.median(lengths) / lengths)
    start = sum(weight * one for weight, one in zip(lam, tau, strict=True))
    firsts = []
    for one, length in zip(tau, lengths, strict=True):
        left, values, _ = np.linalg.svd(one, full_matrices=False)
        for k in range(max(1, size // tasks)):
            firsts.append(left[:, k] * (values[k] / length if setting["basis"] == "weighted" else 1))
    basis = np.linalg.svd(np.stack(firsts, axis=1), full_matrices=False)[0][:, : round(setting["protect"] * size)]
    gram, target = np.zeros((columns, columns)), np.zeros((out, columns))
    for one in tau:
        _, values, right = np.linalg.svd(one, full_matrices=False)
        weight = values ** setting["power"]
        weight[max(1, round(setting["directions"] * size)) :] = 0
        one_gram = right.T @ np.diag(weight / weight.sum()) @ right
        gram, target = gram + one_gram, target + one @ one_gram
    values, vectors = np.linalg.eigh(gram)
    f = np.zeros(columns)
    for k, e in enumerate(values):
        if setting["filter"] == "cutoff":
            f[k] = 1 / e if e > max(setting["strength"], 1e-12) * values.max() else 0
        else:
            time = setting["strength"] / values.mean()
            f[k] = (1 - np.exp(-time * e)) / e if e > 1e-12 else time
    change = (np.eye(out) - basis @ basis.T) @ (target - start @ gram) @ vectors @ np.diag(f) @ vectors.T
    update = start + change
    if setting["trim"] < 1:
        delta, update = change / lam.sum(), np.zeros((out, columns))
        for weight, one in zip(lam, tau, strict=True):
            least = np.sort(np.abs(one).ravel())[max(1, one.size - int(one.size * setting["trim"])) - 1]
            update += weight * np.where(np.abs(one) >= least * (1 - 1e-7), one + delta, 0)
    left, s, right = np.linalg.svd(update, full_matrices=False)
    share = setting["flatten"]
    return left @ np.diag((1 - share) * s + share * s.mean()) @ right


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"protect": 0.0},
        {"coefficient": None},
        {"coefficient": 1.0},
        {"basis": "weighted"},
        {"power": 1.0},
        {"power": 0.5, "directions": 0.4},
        {"filter": "time", "strength": 3.0},
        {"strength": 0.1},
        {"flatten": 0.5},
        {"flatten": 1.0},
        {"trim": 0.3},
        {"trim": 0.5, "flatten": 0.3, "power": 1.0, "filter": "time", "strength": 2.0, "protect": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6), (4, 8, 8)])
def test_it_is_its_equations(shape, changed: dict[str, Any]) -> None:
    tau = task_vectors(shape)
    close(apgd(**changed)(tau).matrix, literal(tau.numpy(), {**PLAIN, **changed}), 1e-7)


@solvers
@granularities
@shapes
def test_a_merge_is_the_layers_update_added_to_the_base(shape, granularity: str, solver: str) -> None:
    tau, start = task_vectors(shape), draw(*shape[1:], seed=3)
    method = apgd(granularity=granularity, solver=solver, flatten=0.3)
    experts = {f"expert {k}": {"w": start + one} for k, one in enumerate(tau)}
    merged = merge({"w": start}, experts, method, policy={"w": "merge"}).state_dict["w"]
    # Conjugate gradients stop short of the end, where rounding has its say.
    close(merged - start, method(tau).matrix, 1e-3 if (granularity, solver) == ("row", "exact") else 1e-6)


# What is promised of the solved M


@given(small, kinds, st.integers(0, 999))
@settings(deadline=None, max_examples=120)
def test_what_the_tasks_share_does_not_move(shape, kind, seed: int) -> None:
    tau = task_vectors(shape, seed)
    solved = apgd(**kind).solve(tau)
    moved = solved.basis.mT @ (solved.update - total(solved.coefficients, tau))
    assert float(moved.norm()) <= 1e-10 * float(solved.update.norm() + solved.start.norm())


@solvers
@granularities
@pytest.mark.parametrize("protect", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 30, 20), (4, 24, 24)])
def test_nor_does_it_in_float32(shape, protect, granularity: str, solver: str) -> None:
    tau = task_vectors(shape).float()
    for short in (1.0, 1e-6):
        solved = apgd(granularity=granularity, solver=solver, protect=protect).solve(short * tau)
        moved = solved.basis.mT @ (solved.update - solved.start)
        far = float((solved.update - solved.start).norm())
        assert float(moved.norm()) <= 1e-6 * (float(solved.start.norm()) + far)


@given(small, kinds, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_the_solved_m_is_the_sum_of_the_moved_task_vectors(shape, kind, seed: int) -> None:
    tau = task_vectors(shape, seed)
    solved = apgd(**kind).solve(tau)
    close(total(solved.coefficients, tau + solved.delta), solved.update)
    close(solved.start, total(solved.coefficients, tau))


@solvers
@granularities
def test_solving_makes_the_surrogate_smaller(granularity: str, solver: str) -> None:
    tau = task_vectors((4, 8, 12))
    solved = apgd(granularity=granularity, solver=solver).solve(tau)
    quadratic = objective(tau, granularity)
    assert float(quadratic.value(solved.update)) < 0.95 * float(quadratic.value(solved.start))


def test_the_exact_solution_is_below_every_step_of_descent() -> None:
    tau = task_vectors((3, 8, 12))
    for granularity in GRANULARITIES:
        exact = apgd(granularity=granularity).solve(tau)
        descent = apgd(granularity=granularity, solver="descent", steps=200).solve(tau)
        best = 2 * float(objective(tau, granularity).value(exact.update))
        assert len(descent.path) == 201
        assert exact.path == ()
        assert all(step.surrogate >= best - 1e-6 * descent.path[0].surrogate for step in descent.path)
        assert torch.equal(descent.basis, exact.basis)


def test_protecting_more_leaves_less_to_gain() -> None:
    tau = task_vectors((3, 12, 12))
    for granularity in GRANULARITIES:
        left = [
            float(objective(tau, granularity).value(apgd(granularity=granularity, protect=share).solve(tau).update))
            for share in (0.0, 0.25, 0.5, 1.0)
        ]
        slack = 1e-5 * left[-1]  # conjugate gradients stop there
        assert all(less <= more + slack for less, more in pairwise(left))
        assert left[0] < 0.9 * left[-1]


@shapes
def test_the_share_that_is_protected_is_of_the_smaller_side(shape) -> None:
    tau = task_vectors(shape)
    size = min(shape[1:])
    for share in (0.0, 0.34, 0.5):
        there = min(round(share * size), shape[0] * max(1, size // shape[0]))
        assert apgd(protect=share).solve(tau).basis.shape == (shape[1], there)


# Limits that are known


ONE = {"coefficient": 1.0, "flatten": 0.0, "trim": 1.0}


@given(small, kinds, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_one_expert_comes_back(shape, kind, seed: int) -> None:
    tau = task_vectors((1, *shape[1:]), seed)
    close(apgd(**{**kind, **ONE})(tau).matrix, tau[0], 1e-7)


@granularities
def test_without_a_step_or_with_everything_protected_the_update_is_the_weighted_sum(granularity: str) -> None:
    tau = task_vectors((3, 6, 9))
    expected = TaskAware(coefficient=0.3)(tau).matrix
    close(apgd(granularity=granularity, solver="descent", steps=0)(tau).matrix, expected)
    close(apgd(granularity="full", filter="time", strength=0.0)(tau).matrix, expected)
    for solver in ("exact", "descent"):  # three times two directions of six are all of them
        close(apgd(granularity=granularity, solver=solver, protect=1.0)(tau).matrix, expected)


@pytest.mark.parametrize("name", list(METHODS))
def test_one_expert_through_the_merge(base, experts, name: str) -> None:
    known = {
        "average": {},
        "task_arithmetic": {"coefficient": 1.0},
        "task_aware": {"coefficient": 1.0},
        "ties": {"coefficient": 1.0, "trim": 1.0},
        "dare": {"coefficient": 1.0, "drop": 0.0},
        "tsv_m": {"coefficient": 1.0},
        "wudi": {"cutoff": 0.0},
        "apgd": {**PLAIN, **ONE},
        "iso_c": None,
        "apgd_published": None,
    }[name]
    if known is None:  # neither flattening nor a fixed η gives it back
        known = {}
    merged = merge(base, {"ada": experts["ada"]}, name, **known).state_dict
    back = all(torch.allclose(merged[key], experts["ada"][key], rtol=0, atol=1e-5) for key in base)
    assert back == (name not in ("iso_c", "apgd_published"))


def reordered(some: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(some)
    return [{name: some[name] for name in order} for order in (names[::-1], names[1:] + names[:1])]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_order_of_the_experts_changes_no_bit(base, experts, name: str) -> None:
    first = merge(base, experts, name).state_dict
    for other in reordered(experts):
        merged = merge(base, other, name).state_dict
        assert all(torch.equal(merged[key], first[key]) for key in base)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dare"}))
def test_nor_do_their_names_change_more_than_rounding(base, experts, cast, name: str) -> None:
    base, experts = (
        cast(base, torch.float64),
        {name: cast(state, torch.float64) for name, state in experts.items()},
    )
    first = merge(base, experts, name).state_dict
    renamed = dict(zip(("z", "m", "a"), experts.values(), strict=True))
    for key, tensor in merge(base, renamed, name).state_dict.items():
        torch.testing.assert_close(tensor, first[key], rtol=0, atol=1e-7)


@given(small, kinds, st.integers(0, 999), st.sampled_from([2.0**-20, 2.0**-7, 2.0**10]))
@settings(deadline=None, max_examples=60)
def test_scaling_all_task_vectors_scales_the_update(shape, kind, seed: int, scale: float) -> None:
    tau = task_vectors(shape, seed)
    method = apgd(**kind)
    # By powers of two, which round nothing: conjugate gradients stop early, where rounding chooses the way.
    scaled = method(scale * tau).matrix / scale
    torch.testing.assert_close(scaled, method(tau).matrix, rtol=1e-5, atol=1e-5 * float(tau.abs().max()))


@granularities
@solvers
def test_turning_inputs_and_outputs_turns_the_update_where_the_granularity_allows(granularity, solver) -> None:
    # `full` and `layer` know no axes. `row` knows the output units, so that only the inputs may be turned.
    tau = task_vectors((3, 6, 9))
    method = apgd(granularity=granularity, solver=solver, flatten=0.4)
    into, out = (torch.linalg.qr(draw(n, n, seed=n)).Q for n in (9, 6))
    close(method(tau @ into).matrix, method(tau).matrix @ into, 1e-3 if solver == "exact" else 1e-7)
    turned = method(out @ tau).matrix, out @ method(tau).matrix
    if granularity == "row":
        assert float((turned[0] - turned[1]).norm() / turned[1].norm()) > 0.01
    else:
        close(*turned, 1e-3 if solver == "exact" else 1e-7)


@given(st.tuples(st.integers(3, 5), st.integers(1, 6), st.integers(1, 6)), kinds, st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_a_zero_task_vector_is_harmless(shape, kind, seed: int) -> None:
    tau = task_vectors(shape, seed)
    with_zero = torch.cat([tau, torch.zeros_like(tau[:1])])
    found, method = apgd(**kind)(with_zero), apgd(**kind)
    assert torch.isfinite(found.matrix).all()
    assert found.facts["coefficients"][:-1] == pytest.approx(method(tau).facts["coefficients"])
    assert found.facts["coefficients"][-1] == 0
    assert all(np.isfinite(one).all() for one in map(np.asarray, found.facts.values()))


@given(small, kinds)
@settings(deadline=None, max_examples=40)
def test_experts_that_never_moved_merge_to_the_base(shape, kind) -> None:
    found = apgd(**kind)(torch.zeros(shape))
    assert not found.matrix.any()
    assert all(np.isfinite(one).all() for one in map(np.asarray, found.facts.values()))


@pytest.mark.parametrize("name", list(METHODS))
def test_experts_that_never_moved_merge_to_the_base_by_every_method(base, name: str) -> None:
    merged = merge(base, {"a": dict(base), "b": dict(base), "c": dict(base)}, name).state_dict
    assert all(torch.equal(merged[key], base[key]) for key in base)


# Trim and flattening, after the constraint


@solvers
@granularities
def test_the_trim_keeps_the_moved_task_vector_where_the_task_vector_was_large(granularity: str, solver: str) -> None:
    tau = task_vectors((3, 6, 9))
    method = apgd(granularity=granularity, solver=solver, trim=0.3)
    solved = method.solve(tau)
    least = torch.tensor([0.9, 1.1, 1.3])
    kept = tau.abs() >= least[:, None, None]
    found = method(tau, Layer("w", ("a", "b", "c"), least))
    close(found.matrix, total(solved.coefficients, (tau + solved.delta) * kept), 1e-9)
    assert found.facts["kept"] == pytest.approx(kept.double().mean(dim=(1, 2)).tolist())
    assert "kept" not in apgd(granularity=granularity, solver=solver, trim=1.0)(tau).facts


def test_the_trim_of_a_merge_counts_all_merged_layers_together(base, experts, cast) -> None:
    base, experts = (
        cast(base, torch.float64),
        {name: cast(state, torch.float64) for name, state in experts.items()},
    )
    method = apgd(trim=0.25, protect=0.2, filter="time", strength=3.0)
    merged = merge(base, experts, method)
    layers = ("conv.weight", "linear.weight")
    tau = {key: torch.stack([(experts[n][key] - base[key]).flatten(1) for n in sorted(experts)]) for key in layers}
    least = []
    for task in range(3):
        together = torch.cat([tau[key][task].abs().ravel() for key in layers]).sort().values
        least.append(together[len(together) - int(len(together) * 0.25) - 1].float())
    for key in layers:
        update = method(tau[key], Layer(key, thresholds=torch.stack(least))).matrix
        close(merged.state_dict[key], base[key] + update.reshape(base[key].shape), 1e-7)
        assert 0.1 < min(next(row for row in merged.audit.rows if row.name == key).facts["kept"]) < 0.5


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4), (4, 1)])
def test_flattening_draws_singular_values_to_their_mean_and_keeps_their_sum(shape) -> None:
    update = draw(*shape)
    left, values, right = np.linalg.svd(update.numpy(), full_matrices=False)
    for share in (0.0, 0.25, 1.0):
        expected = left @ np.diag((1 - share) * values + share * values.mean()) @ right
        close(reshaped(update, share)[0], expected)
        assert float(torch.linalg.svdvals(reshaped(update, share)[0]).sum()) == pytest.approx(values.sum())
    close(reshaped(update, 0.0)[0], update)


def test_flattening_invents_no_direction() -> None:
    update = draw(7, 2) @ draw(2, 9, seed=1)
    found = reshaped(update, 0.5)[0]
    values = torch.linalg.svdvals(update)[:2]
    close(torch.linalg.svdvals(found)[:2], (values + values.mean()) / 2)
    assert float(torch.linalg.svdvals(found)[2]) < 1e-12
    assert not reshaped(torch.zeros(3, 4), 0.5)[0].any()


@pytest.mark.parametrize("flatten", [0.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6), (4, 8, 8), (1, 5, 7)])
def test_no_direction_is_longer_than_the_reach_allows(shape, dtype: torch.dtype, flatten: float) -> None:
    tau = task_vectors(shape).to(dtype)
    free = apgd(flatten=flatten)(tau).matrix
    left, values, right = np.linalg.svd(free.double().numpy(), full_matrices=False)
    # A limit that cuts the longer half.
    limit = float(np.sort(values)[len(values) // 2])
    size, base_norm = min(shape[1:]), 7.0
    typical = float(tau.double().flatten(1).norm(dim=1).mean())
    reach = limit * typical * size**0.5 / base_norm**2
    found = apgd(flatten=flatten, reach=reach)(tau, Layer("w", base_norm=base_norm))
    expected = left @ np.diag(np.minimum(values, limit)) @ right
    close(found.matrix, expected, 1e-6 if dtype == torch.float64 else 2e-5)
    cut = (size - 1 - size // 2) / size
    # The one that the limit was taken from stands on its edge.
    assert cut - 1e-9 <= found.facts["limited"] <= cut + 1 / size + 1e-9


def test_a_limit_that_nothing_reaches_changes_nothing() -> None:
    tau = task_vectors((3, 6, 9))
    free = apgd(protect=0.0)(tau).matrix
    found = apgd(protect=0.0, reach=1e6)(tau, Layer("w", base_norm=1.0))
    close(found.matrix, free)
    assert found.facts["limited"] == 0.0


@pytest.mark.parametrize("base_norm", [float("nan"), 0.0])
def test_where_the_base_says_nothing_there_is_no_limit(base_norm: float) -> None:
    """By hand, and in a layer that begins at zero, which could never move otherwise."""
    tau = task_vectors((3, 6, 9))
    close(apgd(reach=1e-9)(tau, Layer("w", base_norm=base_norm)).matrix, apgd()(tau).matrix)


def test_tasks_that_did_not_move_do_not_lengthen_the_reach() -> None:
    tau = task_vectors((3, 6, 9))
    still = torch.cat([tau, torch.zeros_like(tau[:2])])
    layer = Layer("w", base_norm=3.0)
    close(apgd(reach=0.05)(still, layer).matrix, apgd(reach=0.05)(tau, layer).matrix)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_networks_of_another_scale_are_merged_alike(factor: float) -> None:
    """The limit is made of ratios: base and experts times ten, the update times ten."""
    tau = task_vectors((3, 6, 9))
    one = apgd(reach=0.02)(tau, Layer("w", base_norm=3.0)).matrix
    close(apgd(reach=0.02)(factor * tau, Layer("w", base_norm=3.0 * factor)).matrix, factor * one, 1e-6)


@pytest.mark.parametrize("reach", [0, -1.0, "far", True, float("inf")])
def test_a_reach_that_is_none_is_refused(reach: object) -> None:
    with pytest.raises(MergeError, match="reach"):
        Apgd(reach=reach)


@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6), (2, 1, 5)])
def test_flattened_altogether_the_sum_of_the_task_vectors_is_iso_c(shape) -> None:
    tau = task_vectors(shape)
    close(reshaped(tau.sum(dim=0), 1.0)[0], IsoC(coefficient=1.0)(tau).matrix)
    deficient = tau[:, :, :1] @ draw(1, shape[2], seed=4)
    close(reshaped(deficient.sum(dim=0), 1.0)[0], IsoC(coefficient=1.0)(deficient).matrix)


# WUDI


@pytest.mark.parametrize("cutoff", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 9, 6), (2, 5, 9), (1, 4, 6)])
def test_wudi_is_b_times_the_inverse_of_g(shape, cutoff: float) -> None:
    tau = task_vectors(shape)
    gram, target = np.zeros((shape[2], shape[2])), np.zeros(shape[1:])
    for one in tau.numpy():
        gram += one.T @ one / (one**2).sum()
        target += one @ one.T @ one / (one**2).sum()
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(cutoff, 1e-12) * values.max()
    inverse = vectors[:, kept] @ np.diag(1 / values[kept]) @ vectors[:, kept].T
    close(Wudi(cutoff=cutoff)(tau).matrix, target @ inverse, 1e-7)


def test_wudi_is_full_with_nothing_protected() -> None:
    tau = task_vectors((3, 9, 6))
    close(Wudi(cutoff=0.0)(tau).matrix, apgd(protect=0.0)(tau).matrix)


# Facts for the audit


@solvers
@granularities
@pytest.mark.parametrize("changed", [{}, {"trim": 0.4}, {"flatten": 0.5}, {"protect": 0.0}], ids=str)
def test_its_facts_are_what_they_say(changed: dict[str, Any], granularity: str, solver: str) -> None:
    tau = task_vectors((3, 6, 9))
    method = apgd(granularity=granularity, solver=solver, **changed)
    found, solved = method(tau), method.solve(tau)
    p = (solved.basis @ solved.basis.mT).numpy()
    held = np.linalg.norm(p @ solved.start.numpy())

    def leak(update: Tensor) -> float:
        return float(np.linalg.norm(p @ (update - solved.start).numpy()) / held) if held else 0.0

    def left(update: Tensor) -> list[float]:
        """wⱼ·surrogateⱼ at M over what it is at M = 0; the weights are in both."""
        shares = []
        for one in tau.numpy():
            numbers = []
            for at in (update.numpy(), np.zeros_like(one)):
                residual = (at - one) @ one.T
                numbers.append(
                    {
                        "layer": np.trace(residual) ** 2,
                        "row": (np.diag(residual) ** 2).sum(),
                        "full": (residual**2).sum(),
                    }[granularity]
                )
            shares.append(numbers[0] / numbers[1])
        return shares

    lengths = tau.flatten(1).norm(dim=1)
    expected = (0.3 * lengths.median() / lengths).clamp(max=1)
    assert found.facts["coefficients"] == pytest.approx(expected.tolist())
    assert found.facts["protected"] == pytest.approx(round(method.protect * 6) / 6)
    assert found.facts["leak"] == pytest.approx(leak(solved.update), abs=1e-10)
    assert found.facts["leak"] < 1e-10
    assert found.facts["leak_merged"] == pytest.approx(leak(found.matrix), rel=1e-6, abs=1e-10)
    if method.protect and (method.trim < 1 or method.flatten):
        assert found.facts["leak_merged"] > 0.02
    assert found.facts["surrogate_before"] == pytest.approx(left(solved.start), rel=1e-6)
    assert found.facts["surrogate_after"] == pytest.approx(left(found.matrix), rel=1e-6, abs=1e-9)
    for name in found.facts:
        assert f'"{name}"' in Apgd.__doc__


def test_facts_come_into_the_audit_task_by_task(base, experts) -> None:
    audit = merge(base, experts, apgd(trim=0.5)).audit
    row = next(row for row in audit.rows if row.name == "conv.weight")
    for name in ("coefficients", "surrogate_before", "surrogate_after", "kept"):
        assert len(row.facts[name]) == 3
    assert audit.settings["granularity"] == "full"
    assert audit.settings["trim"] == 0.5


# Precision, devices, inputs


@solvers
@granularities
@pytest.mark.parametrize("shape", [(4, 32, 48), (4, 48, 32)])
def test_float32_is_good_to_three_digits(shape, granularity: str, solver: str) -> None:
    tau = task_vectors(shape)
    for changed in ({}, {"flatten": 0.5, "power": 1.0}):
        method = apgd(granularity=granularity, solver=solver, filter="time", strength=3.0, protect=0.2, **changed)
        exact, single = method(tau).matrix, method(tau.float()).matrix
        assert single.dtype == torch.float32
        close(single.double(), exact, 2e-3)


CARD = torch.cuda.is_available()


@pytest.mark.skipif(not CARD, reason="needs a CUDA device")
@solvers
@granularities
def test_a_cuda_device_computes_the_same(granularity: str, solver: str) -> None:
    tau = task_vectors((4, 48, 64))
    for basis in ("published", "weighted"):
        for changed in ({}, {"trim": 0.3, "flatten": 0.5, "power": 1.0, "filter": "time", "strength": 3.0}):
            method = apgd(granularity=granularity, solver=solver, basis=basis, **changed)
            found = method(tau.cuda())
            assert found.matrix.device.type == "cuda"
            close(found.matrix.cpu(), method(tau).matrix, 1e-6)


@pytest.mark.skipif(not CARD, reason="needs a CUDA device")
def test_a_cuda_device_computes_the_same_of_the_others() -> None:
    tau = task_vectors((4, 48, 64))
    published = ApgdPublished(eta=0.07, divisor=6, steps=100, rate=1e-3, trim=0.3)
    for method in (published, Wudi(cutoff=1e-3), TaskAware(coefficient=0.3)):
        close(method(tau.cuda()).matrix.cpu(), method(tau).matrix, 1e-6)


@given(small, kinds)
@settings(deadline=None, max_examples=30)
def test_task_vectors_stay_as_they_are(shape, kind) -> None:
    tau = task_vectors(shape)
    before = tau.clone()
    apgd(**kind)(tau).matrix.zero_()
    ApgdPublished(eta=0.07, divisor=2, steps=2, rate=1e-4, trim=0.3)(tau).matrix.zero_()
    Wudi(cutoff=1e-3)(tau).matrix.zero_()
    TaskAware(coefficient=0.3)(tau).matrix.zero_()
    assert torch.equal(tau, before)


@pytest.mark.parametrize("name", ["wudi", "apgd", "apgd_published", "task_aware"])
@pytest.mark.parametrize("lengths", [(-3e38, 3e38), (-1e38, -2e38)])
def test_task_vectors_that_overflow_get_a_sentence_that_names_the_tensor(name: str, lengths) -> None:
    base = {"w": torch.full((3, 4), 1e38 if lengths[1] < 0 else 3e38)}
    experts = {key: {"w": torch.full((3, 4), length)} for key, length in zip("ab", lengths, strict=True)}
    with pytest.raises(MergeError, match=f"method '{name}' returned NaN or infinity for tensor 'w'"):
        merge(base, experts, name)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4])
@granularities
@solvers
def test_in_float32_the_length_of_the_task_vectors_makes_no_difference(granularity, solver, scale: float) -> None:
    tau = task_vectors((3, 12, 16)).float()
    for power in (1.0, 2.0, 8.0):
        method = apgd(granularity=granularity, solver=solver, power=power, filter="time", strength=3.0)
        close(method(scale * tau).matrix / scale, method(tau).matrix, 2e-3)


# Bad settings

BAD: list[tuple[str, object, str]] = [
    ("protect", -0.1, "a number of at least 0 and of at most 1"),
    ("protect", 1.1, "a number of at least 0 and of at most 1"),
    ("power", -1.0, "a number of at least 0 and of at most 8"),
    ("power", 9, "a number of at least 0 and of at most 8"),
    ("power", float("nan"), "a finite number of at least 0 and of at most 8"),
    ("directions", 0, "a number above 0 and of at most 1"),
    ("directions", 1.5, "a number above 0 and of at most 1"),
    ("directions", None, "a finite number above 0 and of at most 1"),
    ("strength", -1e-9, "a number of at least 0 and of at most 1e+09"),
    ("strength", float("inf"), "a finite number of at least 0 and of at most 1e+09"),
    ("strength", 1e308, "a number of at least 0 and of at most 1e+09"),
    ("flatten", -0.5, "a number of at least 0 and of at most 1"),
    ("flatten", 2, "a number of at least 0 and of at most 1"),
    ("trim", 0.0, "a number above 0 and of at most 1"),
    ("trim", 1.5, "a number above 0 and of at most 1"),
    ("trim", "0.3", "a finite number above 0 and of at most 1"),
    ("coefficient", -0.3, "a number of at least 0"),
    ("coefficient", "1/T", "a finite number of at least 0"),
    ("steps", -1, "a whole number of at least 0"),
    ("steps", 2.0, "a whole number of at least 0"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), BAD)
def test_a_bad_setting_is_refused_in_one_sentence(name: str, value: object, wanted: str) -> None:
    with pytest.raises(MergeError) as raised:
        apgd(**{"filter": "time", name: value})
    assert str(raised.value) == f"method 'apgd' has {name} = {value!r}; give {wanted}."


@pytest.mark.parametrize(
    ("name", "known"),
    [("solver", "exact, descent"), ("filter", "cutoff, time"), ("basis", "published, weighted")],
)
@pytest.mark.parametrize("value", ["", "Exact", 3, None])
def test_a_bad_word_is_refused_with_the_words_there_are(name: str, known: str, value: object) -> None:
    with pytest.raises(MergeError) as raised:
        apgd(**{name: value})
    assert str(raised.value) == f"method 'apgd' has {name} = {value!r}; use one of: {known}."


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(MergeError, match=r"no granularity 'column'; use one of: layer, row, full\.$"):
        apgd(granularity="column")


def test_a_cutoff_of_one_and_more_would_cut_off_everything() -> None:
    for value in (1, 3.0):
        with pytest.raises(MergeError, match=rf"strength = {value}; give a number of at least 0 and below 1\.$"):
            apgd(filter="cutoff", strength=value)
    apgd(filter="time", strength=3.0)


def test_nothing_can_be_trimmed_where_no_task_vector_counts() -> None:
    with pytest.raises(MergeError, match=r"coefficient = 0; give a number above 0\.$"):
        apgd(coefficient=0, trim=0.5)
    tau = task_vectors((3, 9, 6))
    close(apgd(coefficient=0, protect=0.0)(tau).matrix, Wudi(cutoff=0.0)(tau).matrix)


@pytest.mark.parametrize("value", [-0.1, 1, float("nan"), "0.1", None, True])
def test_a_bad_cutoff_of_wudi_is_refused(value: object) -> None:
    with pytest.raises(MergeError, match=r"^method 'wudi' has cutoff = .*; give a .* of at least 0 and below 1\.$"):
        Wudi(cutoff=value)


def test_the_surrogates_of_the_audit_are_the_public_ones() -> None:
    tau = task_vectors((3, 6, 9))
    found = apgd(granularity="row")(tau)
    share = weights(tau, "row") * surrogate(tau, found.matrix, "row") / surrogate(tau, 0 * found.matrix, "row")
    assert found.facts["surrogate_after"] == pytest.approx(share.tolist())


@pytest.mark.parametrize("value", ["most", None, True, float("nan")])
def test_a_share_to_protect_is_a_number_or_a_known_word(value: object) -> None:
    with pytest.raises(MergeError, match=r"^method 'apgd' has protect = .*; give a .*\.$"):
        apgd(protect=value)


@pytest.mark.parametrize("method", [Apgd(), Apgd(flatten=1.0), IsoC()])
def test_what_rounding_to_bfloat16_left_is_not_lifted(method) -> None:
    draws = torch.Generator().manual_seed(0)
    base = torch.randn(96, 96, generator=draws) / 10
    lefts = [torch.randn(96, 4, generator=draws) for _ in range(4)]
    steps = [left @ torch.randn(4, 96, generator=draws) for left in lefts]
    steps = [step * 0.05 * base.norm() / step.norm() for step in steps]
    experts = {str(place): {"w": (base + step).bfloat16()} for place, step in enumerate(steps)}
    base = base.bfloat16()
    merged = merge({"w": base}, experts, method).state_dict["w"].float() - base.float()
    inside = torch.linalg.qr(torch.cat(lefts, dim=1))[0]
    outside = merged - inside @ (inside.mT @ merged)
    assert float(outside.square().sum() / merged.square().sum()) < 0.01  # lifted, it was a third and more


@pytest.mark.parametrize(
    "method",
    [
        Apgd(),
        Apgd(protect=0.25, flatten=0.0),
        Apgd(granularity="row", protect=0.25, flatten=0.0, coefficient=0.3),
        Apgd(granularity="layer", protect=0.25, flatten=0.0),
        Apgd(protect="energy", flatten=0.0),
    ],
)
def test_a_task_that_did_not_move_in_a_layer_changes_nothing_there(method) -> None:
    tau = torch.randn(3, 12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    still = torch.cat([tau[:1], torch.zeros_like(tau[:1]), tau[1:]])
    assert torch.allclose(method(still).matrix, method(tau).matrix, rtol=1e-9, atol=1e-12)
    assert method(still).facts["coefficients"][1] == 0


@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
def test_the_audit_says_what_was_minimised_and_how_far(granularity: str) -> None:
    tau = torch.randn(3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    method = Apgd(granularity=granularity, protect=0.25, flatten=0.0, power=1.5, directions=0.5, filter="cutoff")
    facts = method(tau).facts
    solved = method.solve(tau)
    quadratic = objective(tau, granularity, power=1.5, top=4)
    nothing = quadratic.value(torch.zeros_like(tau[0]))
    assert facts["objective_before"] == pytest.approx(float(quadratic.value(solved.start) / nothing))
    assert facts["objective_solved"] == pytest.approx(float(quadratic.value(solved.update) / nothing))
    assert facts["objective_solved"] < facts["objective_before"]
    assert facts["gradient_left"] < 1e-3
