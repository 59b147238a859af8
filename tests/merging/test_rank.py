"""The rules that choose a rank from weights alone, each against its docstring written out in numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import Apgd, merge, merge_files
from apgd_teach.merging.method import Layer
from apgd_teach.merging.rank import GRID, RULES, LayerFacts, automatic_rank

NAMES = ("step", "energy", "participation", "length", "agreement", "left_out")
SOLVING = ("length", "agreement", "left_out")
FULL = {"granularity": "full", "power": 1.0, "directions": 1.0, "filter": "time", "strength": 3.0, "basis": "published"}
"""What `literal_solve` writes out, whatever the defaults become."""
# (task, out, in): square, wide, tall, more tasks than directions, two tasks, one row, one column.
SHAPES = [(3, 12, 12), (3, 10, 16), (4, 17, 11), (7, 5, 6), (2, 33, 40), (3, 1, 6), (3, 6, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES)
rules = pytest.mark.parametrize("rule", NAMES)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_of(*shape: int, seed: int = 0, shared: float = 1.0) -> Tensor:
    """Tasks of different lengths, each in few directions, with one update that all have."""
    tasks, out, columns = shape
    own = draw(*shape, seed=seed) * torch.linspace(1, 0.05, columns, dtype=torch.float64)
    together = shared * draw(out, 1, seed=seed + 70) @ draw(1, columns, seed=seed + 80)
    return (own + together) * torch.linspace(0.5, 2, tasks, dtype=torch.float64)[:, None, None]


def made_up(tasks: Tensor, ranks: list[int]) -> list[Tensor]:
    """A solver that no method has: what a rule answers on it follows from the rule alone, and may be any rank."""
    size = len(tasks[0])
    return [tasks.sum(dim=0) * math.cos(7.0 * rank + size) + 0.1 * math.sin(3.0 * rank) * tasks[0] for rank in ranks]


def protected(rule: str, tau: Tensor, base_norm: float = 6.0, **given) -> int:
    return Apgd(protect=rule, **given).solve(tau, Layer(base_norm=base_norm)).basis.shape[1]


def facts_of(tau: Tensor, **given) -> LayerFacts:
    """What `Apgd` shows a rule, seen through a rule of one's own."""
    seen: list[LayerFacts] = []

    def look(layer: LayerFacts) -> float:
        seen.append(layer)
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "look", look)
        Apgd(protect="look", **given).solve(tau, Layer(base_norm=6.0))
    (found,) = seen
    return found


# The rules, written out


def literal_choices(tau: np.ndarray) -> list[int]:
    size = min(tau[0].shape)
    found = []
    for share in (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2):
        if round(share * size) not in found:
            found.append(round(share * size))
    return found


def literal_step(tau: np.ndarray, base_norm: float, solve) -> float:
    """½·(mean ‖τ‖ / ‖θ₀‖)² of r, over the tasks that moved."""
    norms = [math.sqrt((one**2).sum()) for one in tau if np.any(one != 0)]
    return 0.0 if not norms else 0.5 * (sum(norms) / len(norms) / base_norm) ** 2 * min(tau[0].shape)


def literal_spectrum(tau: np.ndarray) -> np.ndarray:
    """Eigenvalues of Σ τⱼτⱼᵀ/‖τⱼ‖², largest first, by numpy's SVD-free way on the output side."""
    energy = sum(one @ one.T / (one**2).sum() for one in tau if np.any(one != 0))
    return np.zeros(1) if isinstance(energy, int) else np.linalg.eigvalsh(energy)[::-1].clip(min=0)


def literal_energy(tau: np.ndarray, base_norm: float, solve) -> float:
    values = literal_spectrum(tau)
    if not values.sum():
        return 0.0
    for k in range(1, len(values) + 1):
        if values[:k].sum() >= values.sum() / 2:
            return k
    raise AssertionError


def literal_participation(tau: np.ndarray, base_norm: float, solve) -> float:
    values = literal_spectrum(tau)
    return values.sum() ** 2 / (values**2).sum() if values.sum() else 0.0


def literal_length(tau: np.ndarray, base_norm: float, solve) -> float:
    """The first choice whose M is at most twice as long as the (lower) median task that moved."""
    norms = sorted(math.sqrt((one**2).sum()) for one in tau if np.any(one != 0))
    if not norms:
        return 0.0
    choices = literal_choices(tau)
    for rank in choices:
        if math.sqrt((solve(tau, rank) ** 2).sum()) <= 2 * norms[(len(norms) - 1) // 2]:
            return rank
    return choices[-1]


def literal_total(tau: np.ndarray, update: np.ndarray, diagonal: bool) -> float:
    """Σⱼ ‖Rⱼ‖² or ‖diag Rⱼ‖² at M, in units of what it is at M = 0."""
    total = 0.0
    for one in tau:
        there, nothing = (update - one) @ one.T, -one @ one.T
        if diagonal:
            there, nothing = np.diag(there), np.diag(nothing)
        if (nothing**2).sum() > 0:
            total += (there**2).sum() / (nothing**2).sum()
    return total


def literal_agreement(tau: np.ndarray, base_norm: float, solve) -> float:
    return least({rank: literal_total(tau, solve(tau, rank), True) for rank in literal_choices(tau)})


def literal_left_out(tau: np.ndarray, base_norm: float, solve) -> float:
    """The surrogate of all tasks under their merge, and of each task under the merge of the others."""
    if len(tau) < 2:
        return 0.0
    scores = {}
    for rank in literal_choices(tau):
        scores[rank] = literal_total(tau, solve(tau, rank), False)
        for task in range(len(tau)):
            scores[rank] += literal_total(tau[[task]], solve(np.delete(tau, task, axis=0), rank), False)
    return least(scores)


def least(scores: dict[int, float]) -> int:
    best = min(scores, key=scores.__getitem__)
    # Where two choices are this close the rule is not defined by its sentence: such a layer is no test of it.
    assert all(score > scores[best] + 1e-5 for rank, score in scores.items() if rank != best)
    return best


LITERAL = {
    "step": literal_step,
    "energy": literal_energy,
    "participation": literal_participation,
    "length": literal_length,
    "agreement": literal_agreement,
    "left_out": literal_left_out,
}


def literal_solve(tau: np.ndarray, rank: int) -> np.ndarray:
    """`Apgd` with the settings `FULL`: M = S + (I − P)(B − S·G)·f(G), p = 1, f(e) = (1 − exp(−3e/mean))/e."""
    out, columns = tau[0].shape
    size, tasks = min(out, columns), len(tau)
    norms = [math.sqrt((one**2).sum()) for one in tau]
    start = sum(min(1, np.median(norms) / tasks / norm) * one for norm, one in zip(norms, tau, strict=True))
    gram, target, vectors = np.zeros((columns, columns)), np.zeros((out, columns)), []
    for one in tau:
        left, values, right = np.linalg.svd(one, full_matrices=False)
        part = right.T @ np.diag(values / values.sum()) @ right
        gram, target = gram + part, target + one @ part
        vectors += [left[:, k] for k in range(max(1, size // tasks))]
    shared = np.linalg.svd(np.stack(vectors, axis=1), full_matrices=False)[0][:, :rank]
    values, vectors = np.linalg.eigh(gram)
    values = values.clip(min=1e-300)
    filtered = vectors @ np.diag(-np.expm1(-3 * values / values.mean()) / values) @ vectors.T
    return start + (np.eye(out) - shared @ shared.T) @ (target - start @ gram) @ filtered


@shapes
@rules
def test_a_rule_is_its_sentence_whatever_solves_the_layer(rule: str, shape) -> None:
    found = set()
    for seed in range(6):
        tau = layer_of(*shape, seed=seed, shared=seed / 2)
        layer = LayerFacts(tau, 60.0, made_up)
        expected = LITERAL[rule](
            tau.numpy(), 60.0, lambda tasks, rank: made_up(torch.as_tensor(tasks), [rank])[0].numpy()
        )
        assert RULES[rule](layer) == pytest.approx(expected, rel=1e-9)
        assert automatic_rank(rule, layer) == min(layer.size, round(expected))
        found.add(expected)
    assert len(found) > 1 or rule in SOLVING or min(shape[1:]) == 1


@pytest.mark.parametrize("rule", SOLVING)
def test_the_rules_that_solve_can_choose_more_than_one_rank(rule: str) -> None:
    """Else the comparison above would let a rule pass that always gives the same."""
    found = {
        automatic_rank(rule, LayerFacts(layer_of(*shape, seed=seed), 6.0, made_up))
        for shape in SHAPES
        for seed in range(6)
    }
    assert len(found) > 2


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 10, 16), (4, 17, 11), (2, 33, 40)])
@rules
def test_apgd_protects_what_the_rule_says_of_its_own_solution(rule: str, shape) -> None:
    for seed in range(4):
        tau = layer_of(*shape, seed=seed, shared=seed)
        expected = LITERAL[rule](tau.numpy(), 20.0, literal_solve)
        available = shape[0] * (min(shape[1:]) // shape[0])
        assert protected(rule, tau, 20.0, **FULL) == min(round(expected), available)


def test_every_rule_is_tested_and_the_grid_starts_with_nothing_protected() -> None:
    assert set(RULES) == set(NAMES)
    assert GRID[0] == 0
    assert sorted(GRID) == list(GRID)
    assert LayerFacts(draw(2, 8, 9), math.nan, made_up).choices == [0, 1, 2, 4]
    assert LayerFacts(draw(2, 900, 128), math.nan, made_up).choices == [0, 2, 4, 8, 16, 32, 64]


# The step


def test_step_means_over_the_tasks_that_moved() -> None:
    tau = torch.zeros(4, 8, 8, dtype=torch.float64)
    tau[1, 0, 0], tau[3, 2, 5] = 3.0, 5.0
    assert RULES["step"](LayerFacts(tau, 8.0, made_up)) == pytest.approx(0.5 * (4 / 8) ** 2 * 8)


def test_step_of_a_mild_update_is_nothing_and_of_one_half_an_eighth() -> None:
    tau = torch.zeros(2, 64, 80, dtype=torch.float64)
    tau[:, 3, 4] = 1.0
    assert [automatic_rank("step", LayerFacts(tau, base, made_up)) for base in (20.0, 2.0, 1.0)] == [0, 8, 32]


@pytest.mark.parametrize("rule", ["step"])
def test_step_by_hand_asks_for_the_length_of_the_base(rule: str) -> None:
    tau = draw(3, 6, 8)
    with pytest.raises(MergeError, match="compares the task vectors with the base") as caught:
        Apgd(protect=rule)(tau)
    assert str(caught.value).endswith("give protect as a number.")
    assert ". " not in str(caught.value)
    assert Apgd(protect=rule)(tau, Layer(base_norm=30.0)).matrix.shape == (6, 8)


@pytest.mark.parametrize("rule", NAMES[1:])
def test_no_other_rule_asks_for_it(rule: str) -> None:
    assert Apgd(protect=rule)(layer_of(3, 6, 8)).matrix.isfinite().all()


@pytest.mark.parametrize("base_norm", [0.0, 5e-324, 1e-200, 1e-3])
def test_where_the_base_is_next_to_nothing_all_is_protected(base_norm: float) -> None:
    tau = draw(2, 6, 8)
    assert automatic_rank("step", LayerFacts(tau, base_norm, made_up)) == 6
    assert automatic_rank("step", LayerFacts(0 * tau, base_norm, made_up)) == 0


def network(*, move: float, seed: int, base: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Three layers of different lengths; an expert moves each by about `move` of its own length."""
    shapes = {"long.weight": (20, 30), "kernel.weight": (12, 3, 3, 3), "short.weight": (30, 16), "short.bias": (30,)}
    scale = {"long.weight": 5.0, "kernel.weight": 1.0, "short.weight": 0.02, "short.bias": 1.0}
    drawn = {
        name: scale[name] * draw(*shape, seed=seed + place, dtype=torch.float32)
        for place, (name, shape) in enumerate(shapes.items())
    }
    return drawn if base is None else {name: base[name] + move * one for name, one in drawn.items()}


def expected_share(base: Tensor, experts: list[Tensor]) -> float:
    """½(mean ‖τ‖/‖θ₀‖)²·r, rounded to directions and given as a share of r = min(out, in·kh·kw)."""
    moved = [float((expert - base).double().norm()) for expert in experts]
    size = min(len(base), base[0].numel())
    return min(size, round(0.5 * (sum(moved) / len(moved) / float(base.double().norm())) ** 2 * size)) / size


@pytest.mark.parametrize("move", [0.02, 0.4, 0.8])
def test_through_a_merge_each_layer_is_compared_with_its_own_base(move: float, tmp_path) -> None:
    base = network(move=0, seed=0)
    experts = {name: network(move=move, seed=10 * k, base=base) for k, name in enumerate(("ada", "ben"), start=1)}
    audit = merge(base, experts, "apgd", protect="step", biases="average").audit
    rows = {row.name: row for row in audit.rows if row.policy == "merge"}
    assert set(rows) == {"long.weight", "kernel.weight", "short.weight"}
    for name, row in rows.items():
        expected = expected_share(base[name], [state[name] for state in experts.values()])
        assert row.facts["protected"] == pytest.approx(expected, abs=1e-9)
        assert (expected > 0) == (move > 0.1)
    assert audit.settings["protect"] == "step"

    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    files = {name: tmp_path / f"{name}.safetensors" for name in experts}
    by_files = merge_files(
        tmp_path / "base.safetensors",
        files,
        tmp_path / "out.safetensors",
        Apgd(protect="step", biases="average"),
        progress=False,
    )
    assert {row.name: row.facts for row in by_files.rows if row.policy == "merge"} == {
        name: row.facts for name, row in rows.items()
    }


def test_a_layer_that_begins_at_zero_merges(tmp_path) -> None:
    base = {"down.weight": draw(6, 8), "up.weight": torch.zeros(8, 6, dtype=torch.float64)}
    experts = {
        name: {key: one + draw(*one.shape, seed=k) / 9 for key, one in base.items()} for k, name in ((1, "a"), (2, "b"))
    }
    rows = {row.name: row for row in merge(base, experts, "apgd", protect="step").audit.rows}
    assert rows["up.weight"].facts["protected"] == 1
    assert rows["down.weight"].facts["protected"] == 0


# What no rule depends on


@shapes
@rules
def test_base_and_experts_in_other_units_change_no_choice(rule: str, shape) -> None:
    tau = layer_of(*shape)
    found = [protected(rule, tau * unit, 6.0 * unit) for unit in (1.0, 2.0**-20, 2.0**20)]
    assert found[0] == found[1] == found[2]


@shapes
def test_longer_task_vectors_change_step_as_the_square_and_no_other_rule(shape) -> None:
    tau = layer_of(*shape)
    step = [RULES["step"](LayerFacts(tau * factor, 1e3, made_up)) for factor in (1, 4)]
    assert step[1] == pytest.approx(16 * step[0])
    for rule in NAMES[1:]:
        assert protected(rule, tau) == protected(rule, 4 * tau)


def test_one_long_task_does_not_decide_for_energy_and_participation() -> None:
    tau = layer_of(3, 12, 16)
    longer = tau * torch.tensor([1.0, 500.0, 0.01])[:, None, None]
    for rule in ("energy", "participation"):
        one, other = (RULES[rule](LayerFacts(which, 6.0, made_up)) for which in (tau, longer))
        assert one == pytest.approx(other)


@shapes
@rules
def test_the_order_of_the_tasks_does_not_matter(rule: str, shape) -> None:
    tau = layer_of(*shape, seed=3)
    assert protected(rule, tau) == protected(rule, tau.flip(0)) == protected(rule, tau.roll(1, 0))


@shapes
@rules
@pytest.mark.parametrize("granularity", ["full", "row", "layer"])
def test_a_rule_leaves_the_task_vectors_as_they_are(rule: str, shape, granularity: str) -> None:
    tau = layer_of(*shape)
    before, version = tau.clone(), tau._version
    protected(rule, tau, granularity=granularity)
    assert torch.equal(tau, before)
    assert tau._version == version


# The edges


@rules
def test_where_nothing_moved_nothing_is_protected(rule: str) -> None:
    for shape in ((3, 6, 8), (1, 8, 6)):
        assert automatic_rank(rule, facts_of(torch.zeros(shape))) == 0
        assert Apgd(protect=rule)(torch.zeros(shape), Layer(base_norm=2.0)).matrix.abs().max() == 0


@pytest.mark.parametrize("rule", ["step", "energy", "participation", "length", "agreement"])
def test_tasks_that_did_not_move_have_no_say(rule: str) -> None:
    """With a solver that does not look at them either; most of them, so that a median would be theirs."""
    tau = layer_of(2, 12, 16)
    idle = torch.cat([tau, torch.zeros(5, 12, 16, dtype=tau.dtype)])
    one, other = (automatic_rank(rule, LayerFacts(which, 6.0, made_up)) for which in (tau, idle))
    assert one == other


@rules
def test_a_task_that_did_not_move_is_harmless(rule: str) -> None:
    tau = layer_of(3, 12, 16)
    tau[1] = 0
    assert 0 <= protected(rule, tau) <= 12
    assert Apgd(protect=rule)(tau, Layer(base_norm=6.0)).matrix.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (40, 24)])
@pytest.mark.parametrize("twins", [1, 4])
@pytest.mark.parametrize("rule", SOLVING)
def test_where_every_rank_solves_the_layer_the_smallest_is_taken(rule: str, twins: int, shape, dtype) -> None:
    """M = τ, however much is protected: which rank leaves the least 1e-30 is noise."""
    for seed in range(3):
        tau = draw(1, *shape, seed=seed, dtype=dtype).repeat(twins, 1, 1)
        assert protected(rule, tau) == 0


@pytest.mark.parametrize(("rule", "expected"), [("step", 0.5 * 25 / 36), ("energy", 1), ("participation", 1)])
@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 3, 1)])
def test_a_layer_of_one_direction(rule: str, expected: float, shape) -> None:
    tau = torch.zeros(shape, dtype=torch.float64)
    tau[:, 0, 0] = 5.0
    assert RULES[rule](LayerFacts(tau, 6.0, made_up)) == pytest.approx(expected)
    assert automatic_rank(rule, LayerFacts(tau, 6.0, made_up)) == round(expected)


@pytest.mark.parametrize("rule", SOLVING)
def test_of_one_direction_the_rules_that_solve_protect_none(rule: str) -> None:
    for shape in ((3, 1, 6), (3, 6, 1)):
        assert LayerFacts(draw(*shape), 6.0, made_up).choices == [0]
        assert protected(rule, layer_of(*shape)) == 0


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_the_rank_lies_between_none_and_all(tasks: int, out: int, columns: int, seed: int, base_norm: float) -> None:
    tau = layer_of(tasks, out, columns, seed=seed)
    for rule in RULES:
        found = automatic_rank(rule, LayerFacts(tau, base_norm, made_up))
        assert isinstance(found, int)
        assert 0 <= found <= min(out, columns)


@pytest.mark.parametrize(("value", "expected"), [(-3.0, 0), (2.4, 2), (2.6, 3), (99.0, 5), (math.nan, 0)])
def test_a_rule_of_ones_own_is_rounded_and_kept_within_bounds(value: float, expected: int, monkeypatch) -> None:
    monkeypatch.setitem(RULES, "mine", lambda layer: value)
    tau = layer_of(1, 5, 7)
    assert automatic_rank("mine", LayerFacts(tau, 1.0, made_up)) == expected
    assert protected("mine", tau) == expected


def test_an_unknown_rule_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(MergeError, match=r"protect = 'automatic'; give a number from 0 to 1 or one of: ") as caught:
        Apgd(protect="automatic")
    assert all(name in str(caught.value) for name in RULES)


# What a rule that solves is shown


@pytest.mark.parametrize("granularity", ["full", "row", "layer"])
@pytest.mark.parametrize("basis", ["published", "weighted"])
@shapes
def test_a_rule_sees_the_updates_that_apgd_would_make_with_so_much_protected(
    shape, basis: str, granularity: str
) -> None:
    tau = layer_of(*shape)
    method = Apgd(granularity=granularity, basis=basis)
    layer = facts_of(tau, granularity=granularity, basis=basis)
    assert (layer.base_norm, layer.size) == (6.0, min(shape[1:]))
    assert torch.equal(layer.task_vectors, tau)
    for tasks in (tau, tau[1:]):
        for ranks in (layer.choices, [layer.size, 1]):
            found = layer.solve(tasks, ranks)
            assert len(found) == len(ranks)
            for rank, update in zip(ranks, found, strict=True):
                expected = dataclasses.replace(method, protect=rank / layer.size).solve(tasks).update
                torch.testing.assert_close(update, expected, rtol=0, atol=1e-9 * float(tau.norm()))


@pytest.mark.parametrize(
    "given",
    [
        {"power": 2.0},
        {"power": 0.0, "directions": 0.3},
        {"filter": "cutoff", "strength": 0.1},
        {"strength": 0.5},
        {"coefficient": 0.1},
    ],
    ids=str,
)
def test_a_rule_sees_the_settings_that_were_given(given: dict[str, object]) -> None:
    tau = layer_of(3, 12, 16)
    given = {**FULL, **given}
    layer = facts_of(tau, **given)
    default = facts_of(tau, **FULL).solve(tau, layer.choices)
    for place, update in enumerate(layer.solve(tau, layer.choices)):
        expected = Apgd(protect=layer.choices[place] / 12, **given).solve(tau).update
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-9)
        assert float((update - default[place]).norm()) > 1e-3 * float(update.norm())


def test_with_descent_a_rule_sees_the_exact_solution() -> None:
    tau = layer_of(3, 12, 16)
    layer = facts_of(tau, solver="descent", steps=2)
    (found,) = layer.solve(tau, [2])
    torch.testing.assert_close(found, Apgd(protect=2 / 12).solve(tau).update, rtol=0, atol=1e-9)
    away = found - Apgd(protect=2 / 12, solver="descent", steps=2).solve(tau).update
    assert float(away.norm()) > 0.01 * float(found.norm())


def test_float32_chooses_as_float64_does() -> None:
    for rule in NAMES:
        for shape in ((3, 12, 12), (3, 10, 16), (2, 33, 40)):
            tau = layer_of(*shape, seed=1)
            assert protected(rule, tau.float()) == protected(rule, tau)
