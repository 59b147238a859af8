"""The quadratic laboratory: its closed forms against literal computations, and the story that it is there to tell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import Laboratory, make_laboratory, merge, preflight, taylor_gap

KINDS = {
    "as it is": {},
    "three tasks": {"n_tasks": 3, "out": 5, "in_": 9, "rank": 2},
    "in the plane": {"out": 1, "in_": 2},
    "random Hessians": {"random_hessian": True, "out": 4, "in_": 6},
    "trained for ever": {"steps": None, "out": 4, "in_": 6},
}


@pytest.fixture(params=KINDS, ids=[one.replace(" ", "-") for one in KINDS])
def laboratory(request: pytest.FixtureRequest) -> Laboratory:
    return make_laboratory(**KINDS[request.param])


def projector_of(out: int, rank: int, seed: int = 3) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(out, rank, generator=draws, dtype=torch.float64)).Q
    return basis @ basis.mT


def total_loss(laboratory: Laboratory, weight: Tensor) -> Tensor:
    return torch.stack([laboratory.loss(task, weight) for task in range(laboratory.n_tasks)]).sum(dim=0)


def solved(task_vectors: Tensor, granularity: str) -> Tensor:
    """The update at which the surrogate is least, with nothing protected, from its normal equations."""
    if granularity == "full":
        w = 1 / task_vectors.square().sum(dim=(1, 2))
        gram = task_vectors.mT @ task_vectors
        pull = (w[:, None, None] * (task_vectors @ gram)).sum(dim=0)
        total = (w[:, None, None] * gram).sum(dim=0)
        return pull @ torch.linalg.pinv(total, rtol=1e-3, hermitian=True)
    rows = task_vectors.movedim(0, 1)
    return torch.stack([torch.linalg.pinv(one) @ one.square().sum(dim=1) for one in rows])


def test_the_loss_is_half_the_mean_squared_error_of_a_linear_regression(laboratory: Laboratory) -> None:
    # Inputs whose second moment is exactly C: the columns of its root, scaled.
    for task in range(laboratory.n_tasks):
        values, vectors = torch.linalg.eigh(laboratory.covariances[task])
        inputs = vectors * (values.clamp_min(0) * len(values)).sqrt()
        outputs = laboratory.targets[task] @ inputs
        weight = laboratory.average()
        expected = 0.5 * (weight @ inputs - outputs).square().sum(dim=0).mean()
        torch.testing.assert_close(laboratory.loss(task, weight), expected)


def test_gradients_are_those_of_autograd(laboratory: Laboratory) -> None:
    weight = laboratory.average().requires_grad_()
    for task in range(laboratory.n_tasks):
        (given_by,) = torch.autograd.grad(laboratory.loss(task, weight), weight)
        torch.testing.assert_close(laboratory.gradient(task, weight.detach()), given_by)


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("random_hessian", [False, True])
def test_experts_in_closed_form_are_where_gradient_descent_arrives(steps: int, random_hessian: bool) -> None:
    laboratory = make_laboratory(n_tasks=3, out=4, in_=8, steps=steps, lr=0.7, random_hessian=random_hessian)
    for task in range(3):
        path = laboratory.path(task, steps)
        assert path.shape == (steps + 1, 4, 8)
        assert torch.equal(path[0], laboratory.initial)
        torch.testing.assert_close(path[-1], laboratory.tuned[task])


def test_a_task_vector_is_an_accumulated_negative_gradient() -> None:
    laboratory = make_laboratory()
    for task in range(laboratory.n_tasks):
        visited = laboratory.path(task, 10)[:-1]
        accumulated = -laboratory.lr * laboratory.gradient(task, visited).sum(dim=0)
        torch.testing.assert_close(accumulated, laboratory.task_vectors[task])


def test_training_for_ever_is_the_limit_of_many_steps() -> None:
    for_ever, long = make_laboratory(steps=None), make_laboratory(steps=20_000)
    torch.testing.assert_close(long.tuned, for_ever.tuned)
    assert torch.equal(for_ever.tuned, for_ever.targets)


def test_the_optimum_is_what_a_numerical_minimiser_finds(laboratory: Laboratory) -> None:
    weight = laboratory.initial.clone().requires_grad_()
    minimiser = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        minimiser.zero_grad()
        loss = total_loss(laboratory, weight)
        loss.backward()
        return loss

    minimiser.step(closure)
    torch.testing.assert_close(laboratory.optimum(), weight.detach(), rtol=0, atol=1e-6)


def test_at_the_optimum_the_gradients_cancel(laboratory: Laboratory) -> None:
    at = laboratory.optimum()
    total = sum(laboratory.gradient(task, at) for task in range(laboratory.n_tasks))
    torch.testing.assert_close(total, torch.zeros_like(at), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_the_projected_optimum_is_the_least_loss_that_the_constraint_allows(rank: int) -> None:
    laboratory = make_laboratory(n_tasks=3, out=5, in_=9)
    projector = projector_of(5, rank)
    shared = 0.6 * laboratory.task_vectors.sum(dim=0)
    found = laboratory.projected_optimum(projector, shared)
    kept = projector @ (found - laboratory.initial - shared)
    torch.testing.assert_close(kept, torch.zeros_like(kept), rtol=0, atol=1e-12)
    # Least squares over the free part: W = θ₀ + PS + V X, with V a basis of the complement and X unknown.
    values, vectors = torch.linalg.eigh(projector)
    free = vectors[:, values < 0.5]
    start = laboratory.initial + projector @ shared
    roots = torch.linalg.cholesky(laboratory.covariances)
    sides = torch.cat(
        [free.mT @ (target - start) @ root for target, root in zip(laboratory.targets, roots, strict=True)], 1
    )
    x = torch.linalg.lstsq(torch.cat(list(roots), 1).mT, sides.mT).solution.mT
    torch.testing.assert_close(found, start + free @ x)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.integers(0, 1000))
def test_no_step_that_the_constraint_allows_lowers_the_loss(seed: int, rank: int, step: int) -> None:
    laboratory = make_laboratory(n_tasks=2, out=4, in_=6, seed=seed)
    projector = projector_of(4, rank, seed)
    found = laboratory.projected_optimum(projector)
    draws = torch.Generator().manual_seed(step)
    direction = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    allowed = direction - projector @ direction
    for size in (1e-3, -1e-3, 1.0):
        assert total_loss(laboratory, found + size * allowed) >= total_loss(laboratory, found) - 1e-15


def test_protecting_nothing_leaves_the_optimum_and_protecting_everything_the_average(laboratory: Laboratory) -> None:
    everything = torch.eye(len(laboratory.initial), dtype=torch.float64)
    torch.testing.assert_close(laboratory.projected_optimum(0 * everything), laboratory.optimum())
    torch.testing.assert_close(laboratory.projected_optimum(everything), laboratory.average())


def test_gaps_are_zero_at_the_experts_and_add_up(laboratory: Laboratory) -> None:
    for task, expert in enumerate(laboratory.tuned):
        assert laboratory.gap(task, expert) == 0
    at = laboratory.average()
    torch.testing.assert_close(
        laboratory.total_gap(at), sum(laboratory.gap(task, at) for task in range(laboratory.n_tasks))
    )
    assert laboratory.gap_closed(laboratory.initial) == 0
    assert laboratory.gap_closed(laboratory.optimum()) >= laboratory.gap_closed(at)


def test_a_whole_plane_of_weights_has_the_losses_of_its_points() -> None:
    laboratory = make_laboratory(out=1, in_=2)
    ticks = torch.linspace(-1, 1, 5, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), dim=-1)[..., None, :]
    losses = laboratory.loss(1, plane)
    assert plane.shape == (5, 5, 1, 2)
    assert losses.shape == laboratory.gap_closed(plane).shape == (5, 5)
    torch.testing.assert_close(losses[3, 1], laboratory.loss(1, torch.tensor([[ticks[3], ticks[1]]])))


@pytest.mark.parametrize("random_hessian", [False, True])
def test_the_first_order_estimate_of_the_base_is_twice_the_true_gap_of_a_finished_expert(random_hessian: bool) -> None:
    laboratory = make_laboratory(n_tasks=3, steps=None, random_hessian=random_hessian)
    gaps = torch.stack([laboratory.gap(task, laboratory.initial) for task in range(3)])
    torch.testing.assert_close(laboratory.first_order_gap(laboratory.initial), 2 * gaps)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200), st.floats(0.01, 0.9), st.booleans())
def test_of_an_unfinished_expert_it_is_between_once_and_twice(
    seed: int, steps: int, lr: float, random_hessian: bool
) -> None:
    laboratory = make_laboratory(out=3, in_=4, seed=seed, steps=steps, lr=lr, random_hessian=random_hessian)
    gaps = torch.stack([laboratory.gap(task, laboratory.initial) for task in range(2)])
    ratio = laboratory.first_order_gap(laboratory.initial) / gaps
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 2 + 1e-6).all()


def test_after_one_step_the_estimate_without_data_is_the_one_with_data_up_to_the_learning_rate() -> None:
    laboratory = make_laboratory(steps=1, lr=0.25)
    update = laboratory.average() - laboratory.initial
    torch.testing.assert_close(
        taylor_gap(laboratory.task_vectors, update), 0.25 * laboratory.first_order_gap(laboratory.average())
    )


@pytest.mark.parametrize(("n_tasks", "overlap"), [(2, 0.0), (2, 0.3), (3, 0.5), (4, 1.0)])
def test_overlap_is_the_cosine_between_the_input_directions_of_two_tasks(n_tasks: int, overlap: float) -> None:
    rank, noise = 2, 0.05
    laboratory = make_laboratory(n_tasks=n_tasks, in_=9, rank=rank, overlap=overlap, noise=noise)
    signal = laboratory.covariances - noise * torch.eye(9, dtype=torch.float64)
    for j, one in enumerate(signal):
        torch.testing.assert_close(one @ one, one)  # a projector: orthonormal directions
        torch.testing.assert_close(one.trace().item(), float(rank))
        for other in signal[:j]:
            cosines = torch.linalg.eigvalsh(one @ other @ one).clamp_min(0).sqrt()[-rank:]
            torch.testing.assert_close(cosines, torch.full_like(cosines, overlap), rtol=0, atol=1e-6)


def test_merging_takes_the_laboratory_as_it_takes_any_network() -> None:
    laboratory = make_laboratory(n_tasks=12, out=3, in_=24)
    assert list(laboratory.experts) == sorted(laboratory.experts)
    assert preflight(laboratory.base, laboratory.experts).findings == ()
    merged = merge(laboratory.base, laboratory.experts, "average")
    torch.testing.assert_close(merged.state_dict["weight"], laboratory.average())
    # What a caller does to a state dict is not done to the laboratory.
    laboratory.base["weight"].zero_()
    laboratory.experts["task 03"]["weight"].zero_()
    assert laboratory.initial.abs().sum() > 0
    assert laboratory.tuned[3].abs().sum() > 0


def test_a_seed_is_a_laboratory() -> None:
    once, again, other = make_laboratory(seed=1), make_laboratory(seed=1), make_laboratory(seed=2)
    assert torch.equal(once.tuned, again.tuned)
    assert not torch.equal(once.tuned, other.tuned)


@pytest.mark.parametrize("seed", range(20))
def test_the_story_average_then_row_then_full_then_optimum(seed: int) -> None:
    laboratory = make_laboratory(seed=seed)
    row, full = (laboratory.initial + solved(laboratory.task_vectors, one) for one in ("row", "full"))
    closed = [float(laboratory.gap_closed(one)) for one in (laboratory.average(), row, full, laboratory.optimum())]
    assert closed == sorted(closed)
    assert closed[0] < 0.8
    assert closed[2] > 0.95


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("random_hessian", [False, True])
def test_the_contrast_a_task_vector_that_has_forgotten_its_inputs_makes_full_lose_to_the_average(
    seed: int, random_hessian: bool
) -> None:
    laboratory = make_laboratory(seed=seed, steps=None, random_hessian=random_hessian)
    full = laboratory.initial + solved(laboratory.task_vectors, "full")
    assert laboratory.gap_closed(full) < laboratory.gap_closed(laboratory.average())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_tasks": 0}, "0 tasks, 16 outputs and 16 inputs"),
        ({"out": 0}, "give 1 or more"),
        ({"overlap": 1.1}, "overlap is 1.1"),
        ({"overlap": -0.1}, "between 0 and 1"),
        ({"noise": 0.0}, "positive variance"),
        ({"rank": 9}, "2 tasks of 9 input directions each do not fit into 16 inputs"),
        ({"rank": 0}, "2 tasks of 0 input directions"),
        ({"n_tasks": 17}, "do not fit"),
        ({"lr": 2.0}, r"between 0 and 2 / 1\.01"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"steps": -1}, "steps is -1"),
    ],
)
def test_what_makes_no_laboratory_is_refused_in_one_sentence(wrong: dict[str, float], sentence: str) -> None:
    with pytest.raises(MergeError, match=sentence):
        make_laboratory(**wrong)
