"""The public code's computation, against a literal loop: autograd, torch.optim.Adam, numpy's SVDs and a global trim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import ApgdPublished, merge
from apgd_teach.merging.published import leak

State = dict[str, Tensor]
SHAPES = {"first.weight": (12, 10), "conv.weight": (8, 3, 2, 2), "last.weight": (7, 9), "first.bias": (12,)}


def network(seed: int, base: State | None = None, scale: float = 0.02) -> State:
    draws = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in SHAPES.items()}
    return state if base is None else {name: base[name] + scale * one for name, one in state.items()}


@pytest.fixture
def base() -> State:
    return network(0)


@pytest.fixture
def experts(base: State) -> dict[str, State]:
    # Of different lengths, as experts are.
    return {name: network(seed, base, 0.01 * seed) for seed, name in enumerate(("ada", "ben", "cy"), start=1)}


def literal_basis(tau: np.ndarray, divisor: int) -> np.ndarray:
    size = min(tau.shape[1:])
    firsts = [np.linalg.svd(one, full_matrices=False)[0][:, : size // len(tau)] for one in tau]
    return np.linalg.svd(np.concatenate(firsts, axis=1), full_matrices=False)[0][:, : size // divisor]


def literal_delta(tau: Tensor, coefficients: Tensor, basis: Tensor, steps: int, rate: float) -> Tensor:
    """Method.md §5.2: the loss is τⱼ ⊙ (τⱼ − M), summed per row, squared; no λⱼ outside M."""
    delta = torch.zeros_like(tau[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        update = (coefficients[:, None, None] * (tau + delta)).sum(dim=0)
        loss = sum((one * (one - update)).sum(dim=1).square().sum() for one in tau)
        loss.backward()
        with torch.no_grad():
            delta.grad.sub_(basis @ basis.mT @ delta.grad)
        adam.step()
    return delta.detach()


def literal_merge(base: State, experts: dict[str, State], eta, divisor, steps, rate, trim) -> State:
    names = sorted(experts)
    layers = {
        key: torch.stack([(experts[name][key] - one).flatten(1) for name in names])
        for key, one in base.items()
        if one.ndim > 1
    }
    least = []
    for task in range(len(names)):
        together = np.sort(np.concatenate([tau[task].abs().numpy().ravel() for tau in layers.values()]))
        least.append(float(together[len(together) - int(len(together) * trim) - 1]) if trim < 1 else 0.0)
    merged = dict(base)
    for key, tau in layers.items():
        coefficients = eta / tau.flatten(1).norm(dim=1)
        basis = torch.from_numpy(literal_basis(tau.numpy(), divisor))
        delta = literal_delta(tau, coefficients, basis, steps, rate)
        kept = torch.stack([one.abs() >= at * (1 - 1e-7) for one, at in zip(tau, least, strict=True)])
        update = (coefficients[:, None, None] * (tau + delta) * kept).sum(dim=0)
        merged[key] = base[key] + update.reshape(base[key].shape)
    return merged


@pytest.mark.parametrize(
    ("eta", "divisor", "steps", "rate", "trim"),
    [
        (0.07, 6, 400, 1e-4, 0.3),
        (0.07, 6, 0, 1e-4, 0.3),
        (0.3, 2, 60, 1e-3, 0.1),
        (0.07, 100, 50, 1e-3, 1),
        (0.07, 1, 50, 1e-3, 0.6),
    ],
)
def test_it_is_the_literal_loop(base, experts, eta, divisor, steps, rate, trim) -> None:
    settings = {"eta": eta, "divisor": divisor, "steps": steps, "rate": rate, "trim": trim}
    found = merge(base, experts, "apgd_published", **settings).state_dict
    expected = literal_merge(base, experts, **settings)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-9, msg=lambda said, key=key: f"{key}: {said}")
        if key != "first.bias":
            assert float((tensor - base[key]).abs().max()) > 1e-3


def test_what_is_no_weight_stays_the_bases(base, experts) -> None:
    merged = merge(base, experts, "apgd_published", eta=0.07, divisor=6, steps=1, rate=1e-4, trim=0.3)
    assert torch.equal(merged.state_dict["first.bias"], base["first.bias"])
    assert [row.policy for row in merged.audit.rows] == ["merge", "merge", "merge", "keep"]
    averaged = merge(base, experts, "apgd").state_dict
    assert not torch.equal(averaged["first.bias"], base["first.bias"])


def test_the_trim_counts_all_merged_layers_together(base, experts) -> None:
    # One layer moved a hundred times as far takes the whole budget.
    far = {
        name: {**state, "last.weight": base["last.weight"] + 100 * (state["last.weight"] - base["last.weight"])}
        for name, state in experts.items()
    }
    share = 63 / (120 + 96 + 63)
    rows = {
        row.name: row.facts.get("kept")
        for row in merge(base, far, "apgd_published", eta=0.07, divisor=6, steps=1, rate=1e-4, trim=share).audit.rows
    }
    assert min(rows["last.weight"]) > 0.9
    assert max(rows["first.weight"]) < 0.1


def test_delta_is_adams_and_so_leaves_the_complement() -> None:
    draws = torch.Generator().manual_seed(0)
    tau = 0.01 * torch.randn(3, 12, 10, generator=draws, dtype=torch.float64)
    coefficients = 0.07 / tau.flatten(1).norm(dim=1)
    basis = torch.from_numpy(literal_basis(tau.numpy(), 3))
    method = ApgdPublished(eta=0.07, divisor=3, steps=50, rate=1e-4, trim=1)
    delta = method.delta(tau, coefficients, basis)
    torch.testing.assert_close(delta, literal_delta(tau, coefficients, basis, 50, 1e-4), rtol=0, atol=1e-12)
    assert float((basis.mT @ delta).norm() / delta.norm()) > 0.05


def test_its_facts_are_what_they_say() -> None:
    draws = torch.Generator().manual_seed(0)
    tau = 0.01 * torch.randn(3, 12, 10, generator=draws, dtype=torch.float64)
    method = ApgdPublished(eta=0.07, divisor=3, steps=50, rate=1e-3, trim=0.4)
    found = method(tau)
    coefficients = 0.07 / tau.flatten(1).norm(dim=1)
    basis = torch.from_numpy(literal_basis(tau.numpy(), 3))
    p = basis @ basis.mT
    start = (coefficients[:, None, None] * tau).sum(dim=0)
    solved = start + coefficients.sum() * literal_delta(tau, coefficients, basis, 50, 1e-3)
    assert found.facts["coefficients"] == pytest.approx(coefficients.tolist())
    assert found.facts["protected"] == pytest.approx(3 / 10)
    assert found.facts["leak"] == pytest.approx(float((p @ (solved - start)).norm() / (p @ start).norm()), rel=1e-6)
    merged = float((p @ (found.matrix - start)).norm() / (p @ start).norm())
    assert found.facts["leak_merged"] == pytest.approx(merged, rel=1e-6)
    assert min(found.facts["leak_merged"], found.facts["leak"]) > 0.01
    assert found.facts["kept"] == pytest.approx([49 / 120] * 3)  # ⌊0.4 · 120⌋ and the entry at the threshold
    for name in found.facts:
        assert f'"{name}"' in ApgdPublished.__doc__


def test_the_leak_is_nothing_where_nothing_is_protected_and_where_nothing_was_there() -> None:
    basis = torch.eye(4)[:, :2]
    inside, outside = torch.eye(4)[:2].T @ torch.ones(2, 3), torch.eye(4)[2:].T @ torch.ones(2, 3)
    assert leak(basis, inside + outside, inside) == 0
    assert leak(basis, 3 * inside, inside) == pytest.approx(2)
    assert leak(basis[:, :0], 3 * inside, inside) == 0
    assert leak(basis, inside, outside) == 0


def test_zero_task_vectors_are_harmless(base, experts) -> None:
    with_base = {**experts, "dot": dict(base)}
    merged = merge(base, with_base, "apgd_published", eta=0.07, divisor=6, steps=5, rate=1e-4, trim=0.3)
    assert all(torch.isfinite(one).all() for one in merged.state_dict.values())
    for row in merged.audit.rows:
        assert row.policy == "keep" or row.facts["coefficients"][3] == 0
    nothing = merge(base, {"dot": dict(base)}, "apgd_published", eta=0.07, divisor=6, steps=5, rate=1e-4, trim=0.3)
    assert all(torch.equal(one, base[key]) for key, one in nothing.state_dict.items())


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"eta": -0.1}, "a number of at least 0"),
        ({"eta": float("nan")}, "a finite number of at least 0"),
        ({"eta": "0.07"}, "a finite number of at least 0"),
        ({"divisor": 0}, "a whole number of at least 1"),
        ({"divisor": 6.0}, "a whole number of at least 1"),
        ({"steps": -1}, "a whole number of at least 0"),
        ({"steps": True}, "a whole number of at least 0"),
        ({"rate": -1e-4}, "a number of at least 0"),
        ({"rate": None}, "a finite number of at least 0"),
        ({"trim": 0}, "a number above 0 and of at most 1"),
        ({"trim": 1.1}, "a number above 0 and of at most 1"),
        ({"trim": float("inf")}, "a finite number above 0 and of at most 1"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_in_one_sentence(settings: dict[str, object], wanted: str) -> None:
    (name, value), *_ = settings.items()
    with pytest.raises(MergeError) as raised:
        ApgdPublished(**settings)
    assert str(raised.value) == f"method 'apgd_published' has {name} = {value!r}; give {wanted}."
