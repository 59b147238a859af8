"""The quadratic laboratory: tasks so simple that gap, optimum and projected optimum are known in closed form.

Every task is a linear regression, Lⱼ(W) = ½ E‖(W − Wⱼ) xⱼ‖² = ½ tr[(W − Wⱼ) Cⱼ (W − Wⱼ)ᵀ], whose inputs xⱼ have their
own covariance Cⱼ. Experts are made by gradient descent from one θ₀, so τⱼ lies mostly in the directions that task j's
inputs take: it *remembers* Cⱼ. That is what merging without data lives on: the surrogate of granularity `full` is the
gap with τⱼᵀτⱼ/‖τⱼ‖² in place of the Cⱼ that nobody has.

A merge sees `Laboratory.base` and `Laboratory.experts`, ordinary state dicts, and no more. The covariances are what is
known of the tasks, as data is; whatever is computed from them is the known answer that a merge is held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.surrogate import taylor_gap_with_gradient

__all__ = ["Laboratory", "make_laboratory"]


@dataclass(frozen=True, eq=False)
class Laboratory:
    """Linear-regression tasks, a common start, and an expert of each; everything in float64.

    Where a weight W is asked for, (…, out, in) with axes in front will do too: a whole plane of weights at once.

    Attributes:
        initial: θ₀ = W₀, shape (out, in).
        targets: Wⱼ, where task j's loss is zero, shape (task, out, in).
        covariances: Cⱼ = E xⱼxⱼᵀ, the Hessian of each output unit's loss, shape (task, in, in).
        tuned: θⱼ, where gradient descent on task j arrived, shape (task, out, in).
        lr: step of that gradient descent.
        steps: how many; None when it went on until θⱼ = Wⱼ.

    Source: (21) in docs/equations.md. Lesson: 04, 06.
    """

    initial: Tensor
    targets: Tensor
    covariances: Tensor
    tuned: Tensor
    lr: float
    steps: int | None

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.targets)

    @property
    def base(self) -> dict[str, Tensor]:
        """θ₀ as a state dict."""
        return {"weight": self.initial.clone()}

    @property
    def experts(self) -> dict[str, dict[str, Tensor]]:
        """θⱼ as state dicts, under names whose alphabetical order is the order of the tasks."""
        width = len(str(self.n_tasks - 1))
        return {f"task {j:0{width}}": {"weight": one.clone()} for j, one in enumerate(self.tuned)}

    @property
    def task_vectors(self) -> Tensor:
        """τⱼ = θⱼ − θ₀, shape (task, out, in)."""
        return self.tuned - self.initial

    def loss(self, task: int, weight: Tensor) -> Tensor:
        """Lⱼ(W) = ½ tr[(W − Wⱼ) Cⱼ (W − Wⱼ)ᵀ], shape (…)."""
        error = weight - self.targets[task]
        return ((error @ self.covariances[task]) * error).sum(dim=(-2, -1)) / 2

    def gradient(self, task: int, weight: Tensor) -> Tensor:
        """∇Lⱼ(W) = (W − Wⱼ) Cⱼ, shape (…, out, in)."""
        return (weight - self.targets[task]) @ self.covariances[task]

    def gap(self, task: int, weight: Tensor) -> Tensor:
        """Lⱼ(W) − Lⱼ(θⱼ), shape (…): zero at the expert, negative where W is better at task j than its expert is."""
        return self.loss(task, weight) - self.loss(task, self.tuned[task])

    def total_gap(self, weight: Tensor) -> Tensor:
        """The sum of the tasks' gaps, shape (…)."""
        return torch.stack([self.gap(task, weight) for task in range(self.n_tasks)]).sum(dim=0)

    def gap_closed(self, weight: Tensor) -> Tensor:
        """Share of the base's total gap that W closes, shape (…): 0 at the base, 1 where the gaps add up to zero."""
        return 1 - self.total_gap(weight) / self.total_gap(self.initial)

    def first_order_gap(self, weight: Tensor) -> Tensor:
        """⟨∇Lⱼ(θ₀), W − θⱼ⟩: the first-order estimate of every task's gap, with the true gradients.

        At the base it is exactly twice the true gap when the expert sits at its target, since a parabola's tangent
        falls twice as far as the parabola does down to its lowest point. After n steps of gradient descent the factor
        is 2/(1 + (1 − a·e)ⁿ) in a direction of curvature e, between 1 (one tiny step) and 2 as long as a·e ≤ 1.

        Args:
            weight: W, shape (out, in).

        Returns:
            shape (task,).

        Source: (4), (5) in docs/equations.md. Lesson: 04.
        """
        gradients = torch.stack([self.gradient(task, self.initial) for task in range(self.n_tasks)])
        return taylor_gap_with_gradient(gradients, self.task_vectors, weight - self.initial)

    def path(self, task: int, steps: int) -> Tensor:
        """Gradient descent on task j, step by step: shape (steps + 1, out, in), from θ₀ on."""
        points = [self.initial]
        for _ in range(steps):
            points.append(points[-1] - self.lr * self.gradient(task, points[-1]))
        return torch.stack(points)

    def average(self) -> Tensor:
        """The simple average of the experts, shape (out, in)."""
        return self.tuned.mean(dim=0)

    def optimum(self) -> Tensor:
        """The W of the lowest total loss, (Σ Wⱼ Cⱼ)(Σ Cⱼ)⁻¹, shape (out, in).

        It uses the covariances, which no merge has: a known answer.
        """
        pull = (self.targets @ self.covariances).sum(dim=0)
        return torch.linalg.solve(self.covariances.sum(dim=0), pull.mT).mT  # the sum is symmetric

    def projected_optimum(self, projector: Tensor, shared: Tensor | None = None) -> Tensor:
        """The best that a merge can reach which leaves the shared subspace alone: lowest total loss with P(M − S) = 0.

        P acts on the outputs and the covariances on the inputs, so the loss is a sum of one of PM and one of (I − P)M.
        The first part is given, PS; the second is free to be the optimum's: W = θ₀ + PS + (I − P)(W* − θ₀).
        Of one output unit (out = 1) P leaves nothing to project: it is 0 or 1.

        Args:
            projector: P = UUᵀ, shape (out, out).
            shared: S = Σ λᵢτᵢ, shape (out, in); None for the mean of the task vectors.

        Returns:
            W, shape (out, in). It uses the covariances: a known answer.

        Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
        """
        given = self.task_vectors.mean(dim=0) if shared is None else shared
        free = self.optimum() - self.initial
        return self.initial + free + projector @ (given - free)


def make_laboratory(
    n_tasks: int = 2,
    out: int = 16,
    in_: int = 16,
    *,
    rank: int | None = None,
    overlap: float = 0.3,
    noise: float = 0.01,
    distance: float = 0.1,
    lr: float = 0.5,
    steps: int | None = 10,
    random_hessian: bool = False,
    seed: int = 0,
) -> Laboratory:
    """Draw tasks, and train an expert of each.

    The inputs of a task are xⱼ = Xⱼ z + √noise · ε, with z and ε standard normal and `rank` orthonormal directions as
    the columns of Xⱼ, so Cⱼ = Xⱼ Xⱼᵀ + noise · I. Tasks get in each other's way as far as their directions overlap.
    The expert is gradient descent's, in closed form: θⱼ = Wⱼ + (W₀ − Wⱼ)(I − a Cⱼ)ⁿ.

    `steps=None` trains for ever. Then θⱼ = Wⱼ in directions of next to no input too, τⱼ has forgotten Cⱼ, and nothing
    that is computed from task vectors can know what matters. With `random_hessian=True` beside it, nothing ever
    connected the two. Share of the base's gap closed over seeds 0 to 199, median (least, most), with the surrogates
    solved exactly and nothing protected:

    | setting                     | average          | row               | full              | optimum          |
    |-----------------------------|------------------|-------------------|-------------------|------------------|
    | as it is                    | 0.72 (0.67–0.77) | 0.92 (0.89–0.94)  | 0.98 (0.98–0.99)  | 1.00 (0.99–1.00) |
    | `steps=None`                | 0.48 (0.33–0.64) | −0.19 (−1.1–0.31) | −0.31 (−2.6–0.38) | 0.97 (0.96–0.98) |
    | `random_hessian=True`, too  | 0.50 (0.37–0.60) | −0.16 (−0.9–0.22) | −0.28 (−1.2–0.20) | 0.76 (0.64–0.82) |

    `make_laboratory(out=1, in_=2)` has two parameters and can be drawn in the plane. With one output unit the three
    granularities ask for the same, and a short τⱼ can point anywhere: the merge beat the average for 171 of 200 seeds.

    Args:
        n_tasks: T.
        out, in_: shape of the weight.
        rank: input directions of each task; None for half of what there is room for, in_ // (2 · n_tasks) or 1.
        overlap: cosine between the r-th directions of any two tasks (all others are orthogonal): 0 for inputs in
            subspaces of their own, 1 for the same subspace.
        noise: variance of the inputs in every direction.
        distance: typical ‖Wⱼ − W₀‖ / ‖W₀‖.
        lr, steps: a and n of the gradient descent.
        random_hessian: instead of the above, Cⱼ = AⱼAⱼᵀ of a square matrix of normal draws, largest eigenvalue 1.
        seed: of the draws.

    Raises:
        MergeError: a number is out of its range, the directions do not fit into `in_`, or `lr` would diverge.

    Source: (21) in docs/equations.md. Lesson: 04, 06.
    """
    if min(n_tasks, out, in_) < 1:
        raise MergeError(
            f"a laboratory of {n_tasks} tasks, {out} outputs and {in_} inputs is empty; give 1 or more each."
        )
    if not 0 <= overlap <= 1:
        raise MergeError(f"overlap is {overlap}; it is a cosine, between 0 and 1.")
    if not noise > 0:
        raise MergeError(f"noise is {noise}; give a positive variance, or the optimum is not unique.")
    draws = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu")

    initial = normal(out, in_) / in_**0.5
    targets = initial + distance * normal(n_tasks, out, in_) / in_**0.5
    if random_hessian:
        factors = normal(n_tasks, in_, in_)
        factors = factors / torch.linalg.matrix_norm(factors, ord=2)[:, None, None]
        covariances = factors @ factors.mT
    else:
        rank = max(1, in_ // (2 * n_tasks)) if rank is None else rank
        if not 1 <= rank * n_tasks <= in_:
            raise MergeError(
                f"{n_tasks} tasks of {rank} input directions each do not fit into {in_} inputs; take fewer."
            )
        own = torch.linalg.qr(normal(in_, n_tasks * rank)).Q.reshape(in_, n_tasks, rank).movedim(1, 0)
        # Of each task's own directions and their sum over the tasks, the mix of length 1 and of cosine `overlap`.
        alone = (1 - overlap) ** 0.5
        together = ((1 + (n_tasks - 1) * overlap) ** 0.5 - alone) / n_tasks
        directions = alone * own + together * own.sum(dim=0)
        covariances = directions @ directions.mT + noise * torch.eye(in_, dtype=torch.float64, device="cpu")
    steepest = 1.0 if random_hessian else 1 + noise
    if not 0 < lr < 2 / steepest:
        raise MergeError(
            f"lr is {lr}; gradient descent converges between 0 and 2 / {steepest:g}, the largest curvature."
        )
    if steps is None:
        tuned = targets.clone()
    elif steps < 0:
        raise MergeError(f"steps is {steps}; give 0 or more, or None for training until nothing changes.")
    else:
        kept = torch.linalg.matrix_power(torch.eye(in_, dtype=torch.float64, device="cpu") - lr * covariances, steps)
        tuned = targets + (initial - targets) @ kept
    return Laboratory(initial, targets, covariances, tuned, lr, steps)
