# %% [markdown]
# # 06 · Projected gradient descent
#
# **By the end you will have shown that** descent on $\Delta$ inside the constraint closes part of the gap that
# averaging leaves.
#
# *Before this:* [05 · The shared subspace](05_shared_subspace.ipynb). On the short route you come from [02 · Naive
# averaging](02_naive_averaging.ipynb); what you need of 03 to 05 is said here where it is used.

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch

# %%
from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)


def pool_of(regime):
    """Base and experts in this profile's size, from the cache where they are there."""
    return make_pool(
        regime=regime,
        seed=SEED,
        base_steps=profile.base_steps,
        expert_steps=profile.expert_steps,
        source=source,
    )


mild = pool_of("mild")
titles = {name: task.title for name, task in mild.tasks.items()}

# %%
from apgd_teach.lessons import problem

header("06")

# %% [markdown]
# ## The algorithm, line by line · short route
#
# A network is merged layer by layer. Everything in this section happens in **one** layer, whose weights are looked at
# as a matrix (out, in): one row per output unit. A convolution kernel becomes (out, in · height · width). In it every
# task $j = 1, \dots, T$ has its task vector $\tau_j = \theta_j - \theta_0$, what fine-tuning changed. A merge chooses
# one matrix $M$, the **update**, and the merged layer is $\theta^* = \theta_0 + M$. The average takes
# $M = \frac{1}{T}\sum_i \tau_i$.
#
# **1. The start.** Instead of $1/T$, each task gets a coefficient $\lambda_i$ of its own,
#
# $$S = \sum_i \lambda_i \tau_i, \qquad
# \lambda_i = \min\left(1, \frac{\operatorname{median}_j \lVert\tau_j\rVert}{T\, \lVert\tau_i\rVert}\right),$$
#
# so that a long task vector has no more say than a short one (lesson 03). $\lVert\cdot\rVert$ is the root of the sum
# of squares. Where all are equally long, $S$ is the average.

# %%
import torch
from apgd_teach.merging import Apgd, merge, shared_basis, task_vectors

LAYER = "conv3.weight"
names = sorted(mild.experts)  # the order in which the library adds up
vectors = task_vectors(mild.base, mild.experts)
tau = torch.stack([vectors[name][LAYER].flatten(1) for name in names])
T, out, inputs = tau.shape

lengths = tau.norm(dim=(1, 2))
coefficients = (lengths.quantile(0.5) / T / lengths).clamp(max=1)
S = torch.einsum("t,toi->oi", coefficients, tau)
f"{LAYER}: {T} task vectors of {out} × {inputs}; λ from {coefficients.min():.3f} to {coefficients.max():.3f}"

# %% [markdown]
# **2. What may change.** One more matrix $\Delta$ (out, in), the same for all tasks, is added to every task vector:
#
# $$M = \sum_i \lambda_i (\tau_i + \Delta) = S + \Lambda\Delta, \qquad \Lambda = \sum_i \lambda_i .$$
#
# $\Delta$ is what descent looks for. A step of $\Delta$ is a step of $M$, only $\Lambda$ times as long, so below we
# move $M$ itself; $\Delta = (M - S)/\Lambda$ can be read off at any time.
#
# **3. What is made small.** The gap of task $j$ is the loss that its users lose by getting $\theta^*$ in place of
# $\theta_j$. Without data nobody knows it, but fine-tuning went *down* the loss of task $j$, so $-\tau_j$ points
# along its gradient, and to first order the gap is, up to a positive factor, $-\langle\tau_j, M - \tau_j\rangle$
# (lesson 04). The inner product $\langle\cdot,\cdot\rangle$ multiplies entry by entry and adds up. Take it one output
# unit $o$ at a time, with $\tau_{jo}$ and $M_o$ for row $o$ of $\tau_j$ and of $M$:
#
# $$r_{jo} = \langle \tau_{jo}, M_o - \tau_{jo}\rangle .$$
#
# $r_{jo} = 0$ says: in unit $o$, $M$ goes as far along task $j$'s own direction as task $j$'s expert did. (These
# numbers are the diagonal of the **residual** $R_j = (M - \tau_j)\tau_j^\top$.) All of them are to be small at once.
# That is the **surrogate**, a number that can be computed and stands in for the gaps that cannot:
#
# $$Q(M) = \tfrac{1}{2} \sum_j \sum_o r_{jo}^2 .$$
#
# One number per output unit is the paper's choice; this course calls it granularity `row`. Others come further below.
#
# **4. The gradient.** $r_{jo}$ depends on row $o$ of $M$ only, and $\partial r_{jo} / \partial M_o = \tau_{jo}$. So,
# by the chain rule, row $o$ of $\nabla Q$ is
#
# $$\frac{\partial Q}{\partial M_o} = \sum_j r_{jo}\, \frac{\partial r_{jo}}{\partial M_o}
# = \sum_j r_{jo}\, \tau_{jo} .$$
#
# This is yours to write. (Stuck? `problem("06.1").hint(1)`, and `problem("06.1").solution()` shows one.)

# %%
problem("06.1")


# %% tags=["exercise"]
def row_gradient(task_vectors, update):
    # your code: begin
    residual = (task_vectors * (update - task_vectors)).sum(dim=2, keepdim=True)
    return (residual * task_vectors).sum(dim=0)
    # your code: end


problem("06.1").check(row_gradient)

# %% [markdown] tags=["solution"]
# The first line is $r_{jo}$ for all tasks and units at once, the second is step 4 above. Nothing larger than the task
# vectors themselves is ever made: the matrix $R_j$ would have out × out entries, and only its diagonal is needed.

# %%
row_gradient = problem("06.1").use(row_gradient)


def Q(update):
    """½ Σⱼ Σₒ rⱼₒ², of this layer."""
    return float((tau * (update - tau)).sum(dim=2).square().sum() / 2)


# The same gradient by autograd, which knows nothing of the derivation.
M = S.clone().requires_grad_()
((tau * (M - tau)).sum(dim=2).square().sum() / 2).backward()
torch.testing.assert_close(
    row_gradient(tau, S), M.grad, rtol=1e-3, atol=1e-4 * float(M.grad.abs().max())
)
"autograd agrees"

# %% [markdown]
# **5. What must stay.** Some output directions are used by several tasks. Lesson 05 collects them as the $k$ columns
# of $U$ (out, $k$), at right angles to each other and of length one. $P = UU^\top$ projects onto them, $I - P$ onto
# all that is at right angles to them, the **orthogonal complement**. In the shared directions $S$ is kept as it is:
#
# $$P(M - S) = 0 .$$
#
# So a step uses the part of the gradient that lies in the complement: with a step length $\alpha$,
#
# $$M \leftarrow M - \alpha\,(I - P)\nabla Q(M) .$$
#
# The constraint then holds after every step if it held before it, because projecting twice is projecting once,
# $PP = P$:
#
# $$P\big(M - \alpha(I-P)\nabla Q - S\big) = P(M - S) - \alpha\,(P - PP)\,\nabla Q = P(M - S) .$$
#
# (The paper's abstract says that gradients are projected *within* the shared subspace. Its method and its code
# project them onto the complement, as here.)

# %%
problem("06.2")


# %% tags=["exercise"]
def projected_step(update, gradient, basis, rate):
    # your code: begin
    free = gradient - basis @ (basis.T @ gradient)
    return update - rate * free
    # your code: end


problem("06.2").check(projected_step)

# %% [markdown] tags=["solution"]
# `basis @ (basis.T @ gradient)` is $P\nabla Q$ without ever making $P$, which is (out, out). The brackets matter for
# speed: `(basis @ basis.T) @ gradient` would make it.

# %%
projected_step = problem("06.2").use(projected_step)

# %% [markdown]
# And a number that says whether the constraint holds: of what was to stay, how much has moved?

# %%
problem("06.3")


# %% tags=["exercise"]
def leak(update, start, basis):
    # your code: begin
    return float((basis.T @ (update - start)).norm() / (basis.T @ start).norm())
    # your code: end


problem("06.3").check(leak)

# %%
leak = problem("06.3").use(leak)

# %% [markdown]
# **6. How far to step.** $Q$ is a sum of squares of linear functions of $M$, so it has one Hessian $H$ everywhere,
# and what $H$ does to a direction $D$ is a difference of two gradients: $HD = \nabla Q(D) - \nabla Q(0)$. With
# $g = (I - P)\nabla Q(M)$, a step changes $Q$ by exactly
#
# $$Q(M - \alpha g) - Q(M) = -\alpha \langle\nabla Q, g\rangle + \tfrac{1}{2}\alpha^2 \langle g, Hg\rangle .$$
#
# Here $\langle\nabla Q, g\rangle = \lVert g\rVert^2$, since $g$ is a projection of $\nabla Q$. And
# $\langle g, Hg\rangle \le L\lVert g\rVert^2$, where $L$, the *Lipschitz constant*, is the largest curvature of $Q$
# in the complement. So with $\alpha = 1/L$
#
# $$Q(M - \alpha g) - Q(M) \le -\frac{1}{L}\lVert g\rVert^2 + \frac{1}{2L}\lVert g\rVert^2
# = -\frac{1}{2L}\lVert g\rVert^2 \le 0 :$$
#
# the surrogate cannot rise. $L$ comes from *power iteration*: apply $H$ to a direction again and again, and the
# steepest direction outgrows all others. What it finds is a little too small as long as it has not settled, hence 1 %
# on top.

# %%
U = shared_basis(tau, min(out, inputs) // 6)  # the paper protects a sixth of r = min(out, in)
nothing = torch.zeros_like(S)


def curvature(direction):
    """H D, of this layer."""
    return row_gradient(tau, direction) - row_gradient(tau, nothing)


direction = row_gradient(tau, S)
for _ in range(50):
    direction = projected_step(nothing, -curvature(direction / direction.norm()), U, 1.0)
L = 1.01 * float(direction.norm())
f"U has {U.shape[1]} of {out} output directions; L = {L:.3g}"

# %% [markdown]
# Now the loop. It is four names that you have: `row_gradient`, `projected_step`, `leak`, and $\alpha = 1/L$.
#
# > **Predict before you run.** After fifty steps, how much of the surrogate is left: a half, a tenth, a thousandth?
# > And how large is the leak, in arithmetic that keeps about seven digits?

# %%
from itertools import pairwise

from apgd_teach.tables import Table


def never_rises(values):
    """Up to what float32 rounds, in units of the first value."""
    return all(after <= before + 1e-5 * values[0] for before, after in pairwise(values))


STEPS = 50
M, way = S, [(Q(S), 0.0)]
for _ in range(STEPS):
    M = projected_step(M, row_gradient(tau, M), U, 1 / L)
    way.append((Q(M), leak(M, S, U)))

assert never_rises([value for value, _ in way])
Table(
    ("step", "Q left, % of that at S", "leak"),
    [(n, 100 * way[n][0] / way[0][0], f"{way[n][1]:.0e}") for n in (0, 1, 2, 5, 10, 20, 50)],
    caption=f"{LAYER}, by your functions",
    digits=2,
    note="The cell fails if any of the fifty steps raises Q.",
)

# %% [markdown]
# The library's `Apgd` does the same for every layer of a network. Here it is asked for one: once by fifty steps of
# its own descent, once for the **exact answer** that descent is heading to (`solver="exact"`; how is said below).

# %%
from apgd_teach.course.prose import say

ROW = {"granularity": "row", "protect": 1 / 6, "flatten": 0.0}
library = Apgd(**ROW, solver="descent", steps=STEPS).solve(tau)
exact = Apgd(**ROW, solver="exact").solve(tau)

torch.testing.assert_close(library.start, S, rtol=1e-4, atol=1e-7)
apart = float((M - library.update).norm() / (library.update - S).norm())
far = float((M - exact.update).norm() / (S - exact.update).norm())
Delta = (exact.update - S) / coefficients.sum()
bold = float(Delta.norm() / lengths.square().mean().sqrt())
say(
    f"Your $M$ and the library's differ by {100 * apart:.2g} % of the way that both went (it looks for $L$ for a "
    f"shorter time). Of $Q$ at $S$, your fifty steps have left {100 * way[-1][0] / way[0][0]:.2g} %; the exact answer "
    f"leaves {100 * Q(exact.update) / way[0][0]:.1g} %. From $S$ to the exact answer, {100 * (1 - far):.0f} % of the "
    f"distance is covered. At the exact answer $\\Delta$ is {bold:.2g} times as long as a task vector (root mean "
    "square of their lengths).",
    holds={
        "the learner's loop is the library's descent": apart < 0.05,
        "no step leaks": max(one for _, one in way) < 1e-4,
        "the exact answer has the least surrogate": Q(exact.update) <= way[-1][0],
    },
)

# %% [markdown]
# Two things to keep in mind. There are $T \cdot \text{out}$ numbers $r_{jo}$ to bring to zero and far more entries of
# $M$ that are free to move, so next to nothing need be left of $Q$, and many an $M$ reaches that; the library's is
# the one nearest to $S$. And the estimate of the gap was *first order*, good near the base. Compare the length of
# $\Delta$ with that of a task vector: is that a small step? A surrogate of zero is no promise of a gap of zero.
# Further below both are measured.

# %% [markdown]
# ## Adam leaks, projecting again holds
#
# The paper does not take plain gradient steps. It projects the gradient and hands it to **Adam**, which divides every
# entry by the root of a running mean of that entry's own square. Its first step keeps nothing of a gradient but the
# signs. Three output units and one shared direction are enough to see what that does:

# %%
u = torch.ones(3) / 3**0.5
gradient = torch.tensor([2.0, -1.0, -1.0])
print(f"the projected gradient along u: {float(u @ gradient):.2f}")
print(f"Adam's first step along u:      {float(u @ gradient.sign()):.2f}")

# %% [markdown]
# The projection came before the division, and the division undid it. The cure is to project once more, afterwards. Is
# that still a way down? For one step it is: with $D$ the division (a positive number for each entry) and
# $g = (I - P)\nabla Q$,
#
# $$\langle \nabla Q, (I - P)Dg\rangle = \langle (I - P)\nabla Q, Dg\rangle = \langle g, Dg\rangle > 0 .$$
#
# Three ways from the same $S$, with the same $U$, in the layer from above. Adam's rate is in units of the weights;
# the paper's suits its own networks, so here it is a tenth of the root mean square of the entries of $\tau$. The
# accuracy is that of the average network with only this layer replaced by $M$, on *validation* images, the mean over
# the tasks: one layer of four, and a few images a task, so read no more into it than whether it moves.
#
# > **Predict before you run.** Whose surrogate is smallest after 400 steps? And of $PS$, which was to stay, how much
# > has Adam moved: a thousandth, a hundredth, a tenth, more?

# %%
from statistics import mean

from apgd_teach.evaluate import Evaluator, compare
from apgd_teach.figures import Slider, draw_descent, measure_descent, panel

validation = Evaluator(mild, images=profile.plane_images, split="validation")
average = merge(mild.base, mild.experts, "average")


def accuracy(update):
    """Of the average network with this layer's update replaced."""
    layer = mild.base[LAYER] + update.reshape(mild.base[LAYER].shape)
    scores = validation.scores({**average.state_dict, LAYER: layer})
    return mean(score.accuracy for score in scores.values())


paths = measure_descent(
    tau,
    granularity="row",
    protect=1 / 6,
    steps=400,
    rate=0.1 * float(tau.square().mean().sqrt()),
    accuracy=accuracy,
    at=(0, 30, 100, 400),
)


def draw_paths_at(step):
    """Looks up: nothing is solved while you move the slider."""
    return draw_descent(paths, step=step)


panel(
    draw_paths_at,
    title="Three ways down, one layer",
    static=[{"step": 10}, {"step": 400}],
    step=Slider(
        "steps taken", [0, 1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400], start=400
    ),
)

# %%
ways = {
    "plain descent": paths.descent,
    "Adam after the projection": paths.adam,
    "Adam projected again": paths.again,
}
quickest = min(ways, key=lambda name: ways[name].surrogate[-1])
rises = {
    name: sum(after > before + 1e-5 for before, after in pairwise(one.surrogate))
    for name, one in ways.items()
}
say(
    f"After 400 steps Adam's leak is **{100 * paths.adam.leak[-1]:.0f} %**: what has moved in the shared directions is "
    f"{paths.adam.leak[-1]:.2g} times as long as all that was to stay there. Projected again it is "
    f"{paths.again.leak[-1]:.0e}, rounding, as with plain descent. The smallest surrogate after 400 "
    f"steps is that of {quickest}. What is left of that at $S$: "
    + ", ".join(f"{100 * one.surrogate[-1]:.2g} % with {name}" for name, one in ways.items())
    + ". Steps on which it rose: "
    + ", ".join(f"{count} with {name}" for name, count in rises.items())
    + ".",
    holds={
        "Adam leaks": max(paths.adam.leak) > 1e-3,
        "projecting again holds": max(paths.again.leak) < 1e-4,
        "plain descent holds": max(paths.descent.leak) < 1e-4,
        "plain descent never rises": never_rises(paths.descent.surrogate),
    },
    facts={"06.adam_leak": 100 * paths.adam.leak[-1]},
)

# %% [markdown]
# ## Is it heading for the right place? · in depth
#
# On real tasks nobody knows the best merge. In the **laboratory** of lesson 04 one does: tasks are linear
# regressions, their losses parabolas with known covariances, and the best $M$ with $P(M - S) = 0$ has a closed form,
# the *projected optimum*. It separates two questions that are easily mixed up.
#
# * Does the *algorithm* work? Give it the true losses in place of the surrogate, and it must arrive at the projected
#   optimum.
# * Does the *surrogate* lead to about the same place, though it has seen the task vectors only?
#
# `full` is a third granularity, which asks for the whole residual to vanish; the next section is about it.

# %%
from apgd_teach.merging import make_laboratory, projector
from apgd_teach.merging.descent import descend
from apgd_teach.merging.objective import Full, objective

laboratory = make_laboratory(n_tasks=3, seed=SEED)
theirs = laboratory.task_vectors
begun = Apgd(protect=1 / 6, solver="descent", steps=0).solve(theirs)
goal = laboratory.projected_optimum(projector(begun.basis), begun.start) - laboratory.initial

moves = laboratory.targets - laboratory.initial
true_losses = Full(  # its gradient M ΣC − Σ(Wⱼ − θ₀)Cⱼ is the sum of the tasks' own
    laboratory.covariances.sum(dim=0),
    (moves @ laboratory.covariances).sum(dim=0),
    (moves @ laboratory.covariances * moves).sum(),
)
followed = {
    "true losses": true_losses,
    "row": objective(theirs, "row"),
    "full": objective(theirs, "full"),
}
COUNTS = (0, 3, 10, 30, 100, 300, 1000)
reached = {
    name: [descend(quadratic, begun.start, begun.basis, n)[0] for n in COUNTS]
    for name, quadratic in followed.items()
}


def distance(update):
    """To the projected optimum, in per cent of the distance from S."""
    return 100 * float((update - goal).norm() / (begun.start - goal).norm())


def closed(update):
    """Share of the base's total gap that is closed, in per cent; of the true gap, not of an estimate."""
    return 100 * float(laboratory.gap_closed(laboratory.initial + update))


Table(
    (
        "steps",
        *(f"{name}: distance %" for name in followed),
        *(f"{name}: gap closed %" for name in followed),
    ),
    [
        (
            n,
            *(distance(one[i]) for one in reached.values()),
            *(closed(one[i]) for one in reached.values()),
        )
        for i, n in enumerate(COUNTS)
    ]
    + [("projected optimum", 0.0, 0.0, 0.0, closed(goal), closed(goal), closed(goal))],
    caption="In the laboratory: descent inside the constraint, by what it follows",
    note="Distance to the projected optimum, 100 % at S (0 steps). Gap closed: 0 % at the base, 100 % where "
    "the gaps add up to zero.",
)

# %%
last = {name: one[-1] for name, one in reached.items()}


def peak(name):
    """The most that a surrogate's way closes of the true gap, and after how many steps."""
    place = max(range(len(COUNTS)), key=lambda i: closed(reached[name][i]))
    return f"{closed(reached[name][place]):.1f} % after {COUNTS[place]:,} steps"


say(
    f"With the true losses the distance falls to {distance(last['true losses']):.1g} % of what it was: the algorithm "
    f"arrives. With the surrogates, which know no covariance, it ends at {distance(last['row']):.0f} % (`row`) and "
    f"{distance(last['full']):.0f} % (`full`). In terms of what matters, the true gap: $S$ closes "
    f"{closed(begun.start):.0f} % of the base's, the projected optimum {closed(goal):.1f} %, `row` "
    f"{closed(last['row']):.1f} % and `full` {closed(last['full']):.1f} %. The most that each closes on the way: `row` "
    f"{peak('row')}, `full` {peak('full')}.",
    holds={
        "with the true losses, descent arrives": distance(last["true losses"]) < 1,
        "no update inside the constraint closes more than the projected optimum": all(
            closed(one) <= closed(goal) + 1e-6 for one in last.values()
        ),
    },
)

# %% [markdown]
# Where the way ends and where it was best need not be the same: keep that in mind for the real network below. And the
# laboratory is built so that task vectors *remember* the covariances, since its experts came by gradient descent from
# a common base. Lesson 04 has one in which they do not.
#
# ## How much of the residual: layer, row, full
#
# The residual $R_j = (M - \tau_j)\tau_j^\top$ of a task is a matrix (out, out), and the estimated gap is, up to its
# sign and a factor, its *trace*, the sum of its diagonal. How much of $R_j$ is driven to zero is a choice, the
# **granularity**:
#
# | granularity | what is made small | numbers per task |
# |---|---|---|
# | `layer` | $(\operatorname{tr} R_j)^2$ | 1, the estimate itself |
# | `row` | $\lVert\operatorname{diag} R_j\rVert^2$ | out; the paper's |
# | `full` | $\lVert R_j\rVert^2 / \lVert\tau_j\rVert^2$ | out × out |
#
# Column by column $R_j$ says how $M$ differs from $\tau_j$ on the input directions that $\tau_j$ itself used. `full`
# wants no difference for all of them, in all output units; `layer` wants none on balance. Each bounds the one before
# it: what `full` brings to zero is zero for the other two as well.
#
# Below is $R$ of one task in `conv2.weight`, at $S$ and at the exact solution of each granularity: with nothing
# protected, where descent may go anywhere, and with the paper's sixth. Bright is far from zero; a point is the mean
# of $|R|$ over two by two entries, and each choice has a scale of its own.
#
# > **Predict before you run.** `row` brings the diagonal to zero. What happens to the rest of $R$ meanwhile? And what
# > does it cost to leave a sixth of the directions alone?

# %%
from apgd_teach.figures import draw_residual, measure_residuals

small = torch.stack([vectors[name]["conv2.weight"].flatten(1) for name in names])
PROTECTED = {"nothing": 0.0, "1/6 of r": 1 / 6}
residuals = {
    held: measure_residuals(small, [titles[name] for name in names], protect=protect, size=48)
    for held, protect in PROTECTED.items()
}


def draw_kept(task, held):
    """Looks up what was solved above."""
    return draw_residual(residuals[held], task=task)


panel(
    draw_kept,
    title="What M keeps of a task",
    static=[{"held": held} for held in PROTECTED],
    task=Slider("task", [titles[name] for name in names]),
    held=Slider("protected", list(PROTECTED)),
)

# %%
kept = {
    held: {
        label: 100 * mean(by[label].whole for by in one.found.values())
        for label in ("S", "layer", "row", "full")
    }
    for held, one in residuals.items()
}
zero = max(100 * by["row"].diagonal for one in residuals.values() for by in one.found.values())
say(
    f"`row` has what it asks for: at most {zero:.1g} % of any task's diagonal is left. What is left of the *whole* "
    "residual, as a share of the base's and in the mean over the tasks:\n\n"
    + "\n".join(
        f"* {held} protected: " + ", ".join(f"{label} {value:.0f} %" for label, value in by.items())
        for held, by in kept.items()
    )
    + "\n\nWhere a sixth is protected, `row` has made the whole of $R$ "
    f"{'larger' if kept['1/6 of r']['row'] > kept['1/6 of r']['S'] else 'smaller'} than it was at $S$. The diagonal is "
    "all that it looks at.",
    holds={
        "row brings the diagonal to zero": zero < 1,
        "protecting costs full something": kept["1/6 of r"]["full"] > kept["nothing"]["full"],
    },
)

# %% [markdown]
# Why does protecting cost anything? The shared directions are those in which many tasks write much, so a good part of
# every $\tau_j$ lies there, and there $M$ must stay $S$. What a surrogate still wants has to be made up for in the
# other directions, where the tasks have less to say.
#
# ### The exact answer of `full` · in depth
#
# Descent is one way to the minimum. `full` has another: a formula. With $w_j = 1/\lVert\tau_j\rVert^2$ its surrogate
# is $\frac{1}{2}\sum_j w_j \lVert(M - \tau_j)\tau_j^\top\rVert^2$, and its gradient, line by line,
#
# $$\sum_j w_j (M - \tau_j)\,\tau_j^\top\tau_j = M G - B, \qquad
# G = \sum_j w_j\, \tau_j^\top\tau_j, \qquad B = \sum_j w_j\, \tau_j \tau_j^\top\tau_j .$$
#
# At the constrained minimum the free part of the gradient is zero, $(I - P)(MG - B) = 0$, that is
# $(I - P)M\,G = (I - P)B$. $P$ stands on the left and $G$ on the right, so neither is in the other's way: multiply by
# $G^{-1}$ from the right to get $(I - P)M = (I - P)B\,G^{-1}$. The rest of $M$ is given by the constraint, $PM = PS$.
# Both parts together:
#
# $$M = P S + (I - P)\, B\, G^{+} .$$
#
# $G^{+}$ is the inverse where $G$ has one, and leaves out the directions in which $G$ is zero. (`row` has no such
# formula under a constraint, since every output unit has its own $G$ and $P$ mixes the units; the library solves its
# equations by conjugate gradients.)
#
# On task vectors drawn at random $G$ is *well conditioned*, its largest eigenvalue not many times its smallest, and
# descent can be run until it stops:

# %%
draws = torch.Generator().manual_seed(SEED)
drawn = torch.randn(8, 24, 16, generator=draws, dtype=torch.float64)
whole = objective(drawn, "full")  # holds G and B
first = drawn.mean(dim=0)
basis = shared_basis(drawn, 4)
P = projector(basis)
formula = P @ first + (torch.eye(24).double() - P) @ whole.target @ torch.linalg.pinv(whole.gram)
stopped, _ = descend(whole, first, basis, 2000)

difference = float((formula - stopped).norm() / (formula - first).norm())
eigenvalues = torch.linalg.eigvalsh(objective(tau, "full").gram.double()).clamp_min(0)
say(
    f"Formula and descent differ by {difference:.0e} of the way from $S$, with a largest eigenvalue of $G$ that is "
    f"{float(torch.linalg.cond(whole.gram)):.1f} times the smallest. In `{LAYER}` of the real network "
    f"{int((eigenvalues < 1e-3 * eigenvalues.max()).sum())} of {inputs} eigenvalues of $G$ lie below a thousandth "
    "of the largest.",
    holds={"the closed form is where descent ends": difference < 1e-8},
)

# %% [markdown]
# Descent is slow in directions of small eigenvalues $e$: a step takes the share $\alpha e$ of what is left there, so
# $n$ steps take $1 - (1 - \alpha e)^n$. Whoever stops early leaves those directions as $S$ has them. They are the
# ones in which the task vectors say least, so to stop early can be a virtue, and the library's `full` has it built
# in: its filter `"time"` takes $1 - \mathrm{e}^{-te/\bar e}$ of each direction, with $\bar e$ the mean eigenvalue and
# $t = 3$, which is descent for a while, without a loop.

# %% [markdown]
# ## How many steps? A lower surrogate is not always a better network · in depth
#
# Now all layers at once. The same projected descent in every weight matrix (biases are averaged), the same number of
# steps everywhere, and the whole network is scored on validation images: the gap itself, of which the surrogate is to
# be the stand-in, and the accuracy.
#
# > **Predict before you run.** The surrogate falls with every step. Will the gap?

# %%
from apgd_teach.figures import draw_steps, measure_steps, show

stops = measure_steps(validation, mild.base, mild.experts)
show(draw_steps(stops))

# %%
at = {way: stops.steps[way][stops.best(way)] for way in stops.steps}


def course_of(way):
    """Where the measured gap was smallest, and whether it rose again."""
    gaps, steps, best = stops.gaps[way], stops.steps[way], stops.best(way)
    if best == 0:
        return f"every number of steps looked at has a larger gap than $S$ ({gaps[-1]:.3f} nats after {steps[-1]:,})"
    if best == len(gaps) - 1:
        return f"the gap is smallest at the last step looked at, {steps[best]:,} ({gaps[best]:.3f} nats)"
    return (
        f"the gap is smallest after {steps[best]:,} steps ({gaps[best]:.3f} nats) and larger again after "
        f"{steps[-1]:,} ({gaps[-1]:.3f})"
    )


say(
    f"At $S$ the mean gap is {stops.gaps['row, 1/6 protected'][0]:.3f} nats, at the base {stops.base_gap:.3f}. On "
    "these validation images:\n\n"
    + "\n".join(f"* *{way}*: {course_of(way)}." for way in stops.steps)
    + "\n\nThe surrogate fell all the time.",
    holds={
        "the surrogate falls with every step": all(
            never_rises(one) for one in stops.surrogate.values()
        ),
    },
)

# %% [markdown]
# The surrogate is what descent sees, the gap is what users feel. Where the two part, more descent is worse, and the
# surrogate does not say so: here validation images chose the number of steps. Without any data one has to settle it
# beforehand, which is what the defaults of a method are.
#
# ## The whole method in one call · short route
#
# `merge(base, experts, "apgd")` does all of the above for every layer: coefficients, subspace, $\Delta$, update. Its
# defaults are not the paper's. They are those that did best on validation images of pools like this one
# (`benchmarks/settings.md`, which also shows where they lose): granularity `full` (the whole of $R_j$ is to vanish,
# and not its diagonal only), with a flatter weight of each task's directions (`power=1.5`), solved at once by a
# filter that stands for stopping early, **nothing protected**, and the singular values of $M$ drawn three quarters of
# the way to their mean (`flatten=0.75`), so that no direction of $M$ is much longer than the others. Beside it:
#
# * *descent, 1/6 protected*: this lesson's own, `full`, stopped where validation images of the mild experts said (the
#   hot ones take the same number of steps), and *descent, free*, the same with nothing protected;
# * *the paper*: `row`, a sixth protected, and a **trim** at the end: of each expert only the 30 % largest $|\tau_i|$
#   in the whole network are kept, and $\tau_i + \Delta$ is set to zero elsewhere;
# * *as published*: what the paper's public code computes, to the letter, with Adam, its constants and its trim.
#
# All of them on mild and on *hot* experts, those of lesson 02 that were fine-tuned with a large learning rate.
#
# > **Predict before you run.** Which of them beat the average of the mild experts? And which that of the hot ones?

# %%
import time

hot = pool_of("hot")
CALLS = {
    "average": ("average", {}),
    "apgd (default)": ("apgd", {}),
    "the paper": ("apgd", {**ROW, "trim": 0.3}),
    "as published": ("apgd_published", {}),
}
pools = {"mild": mild, "hot": hot}
merged, seconds = {}, {}
for regime, pool in pools.items():
    merged[regime] = {}
    for label, (method, settings) in CALLS.items():
        begin = time.perf_counter()
        merged[regime][label] = merge(pool.base, pool.experts, method, **settings)
        seconds[regime, label] = time.perf_counter() - begin

# %%
from dataclasses import replace

from apgd_teach.figures import draw_methods
from apgd_teach.figures.steps import WAYS

WALKED = {
    "descent, 1/6 protected": "full, 1/6 protected",
    "descent, free": "full, nothing protected",
}
# The number of steps was chosen on validation images of the mild experts; the hot ones take the same.
hot_ways = measure_steps(
    Evaluator(hot, images=profile.plane_images, split="validation"),
    hot.base,
    hot.experts,
    ways={way: replace(WAYS[way], steps=(max(1, at[way]),)) for way in WALKED.values()},
)
for label, way in WALKED.items():
    merged["mild"][label] = stops.states[way][stops.best(way)]
    merged["hot"][label] = hot_ways.states[way][-1 if at[way] else 0]

results = {}
for regime, pool in pools.items():
    result = compare(pool, merged[regime], images=profile.test_images)
    # Labelled images of the validation split chose the number of steps.
    used = {**result.data_used, **dict.fromkeys(WALKED, "labelled")}
    results[regime] = replace(result, data_used=used)


def draw_results(experts):
    """Looks up what was scored."""
    return draw_methods(results[experts])


panel(
    draw_results,
    title="The methods beside each other",
    static=[{"experts": "mild"}, {"experts": "hot"}],
    experts=Slider("experts", list(results)),
)

# %%
results["mild"].summary()

# %%
results["hot"].summary()

# %% [markdown]
# The gap in nats, and how much of what averaging leaves is closed: one minus the gap over the average's gap, both in
# the mean over the tasks. 0 % is no better than the average, 100 % as good as every task's own expert, below zero
# worse than the average.

# %%
gap = {
    regime: {label: mean(result.gap(label).values()) for label in ("base", *result.merged)}
    for regime, result in results.items()
}
share = {
    regime: {label: 100 * (1 - one / by["average"]) for label, one in by.items()}
    for regime, by in gap.items()
}
Table(
    ("network", "mild: mean gap", "closed %", "hot: mean gap", "closed %"),
    [
        (
            label,
            *(f"{gap['mild'][label]:.3f}", share["mild"][label]),
            *(f"{gap['hot'][label]:.3f}", share["hot"][label]),
        )
        for label in gap["mild"]
    ],
    caption="Mean gap on test images (nats), and the share of the average's that is closed",
    digits=0,
)

# %% [markdown]
# Was the constraint kept? Every audit states two leaks $\lVert P(M-S)\rVert / \lVert PS\rVert$: of the $M$ that was
# solved, and of the one that was merged. Trimming comes after the constraint and knows nothing of it. And the step
# $\lVert M\rVert / \lVert\theta_0\rVert$: the estimate of the gaps was first order, made for short ones.


# %%
def worst_fact(regime, label, fact):
    """The largest of a fact over the layers, in per cent."""
    return 100 * max(
        row.facts[fact] for row in merged[regime][label].audit.rows if fact in row.facts
    )


def longest(regime, label):
    """The longest step of any merged weight, in per cent of the base's norm."""
    rows = merged[regime][label].audit.rows
    return 100 * max(row.relative_step for row in rows if row.policy == "merge")


solvers = [label for label in CALLS if label != "average"]
Table(
    ("experts", "method", "leak as solved %", "leak as merged %", "longest step %"),
    [
        (
            regime,
            label,
            worst_fact(regime, label, "leak"),
            worst_fact(regime, label, "leak_merged"),
            longest(regime, label),
        )
        for regime in pools
        for label in solvers
    ],
    caption="The constraint and the step; the largest of the layers",
    note="The default protects nothing, so nothing can leak there.",
)

# %%
trim_leak = worst_fact("mild", "the paper", "leak_merged")
say(
    f"With the exact solver the paper's constraint holds ({worst_fact('mild', 'the paper', 'leak'):.1g} % leak in the "
    f"worst layer of the mild experts), and the trim breaks it ({trim_leak:.0f} %). As published, Adam has let "
    f"{worst_fact('mild', 'as published', 'leak'):.0f} % through before the trim came. So the constraint is a property "
    "of the $M$ that was solved, not of the network that is handed over.",
    holds={
        "the solved M keeps the constraint": worst_fact("mild", "the paper", "leak") < 0.1,
        "the trim breaks the constraint": trim_leak > 1,
    },
    facts={"06.trim_leak": trim_leak},
)

# %% [markdown]
# ## What it costs · in depth
#
# To whoever runs the merged network: nothing that the base did not cost. Same tensors, same shapes, no head more. To
# whoever merges: one solution per layer, once.

# %%
numbers = {
    label: sum(tensor.numel() for tensor in (one if label in WALKED else one.state_dict).values())
    for label, one in merged["mild"].items()
}
base_numbers = sum(tensor.numel() for tensor in mild.base.values())
extra = {label: count - base_numbers for label, count in numbers.items()}
say(
    f"The base has {base_numbers:,} parameters. Extra parameters: "
    + ", ".join(f"{label} {count}" for label, count in extra.items())
    + f". Keeping all {T} experts instead would take {T * base_numbers:,}.",
    holds={"no merge adds a parameter": not any(extra.values())},
)

# %% tags=["machine"]
Table(
    ("method", "seconds, mild", "seconds, hot"),
    [(label, seconds["mild", label], seconds["hot", label]) for label in CALLS],
    caption="Seconds for one merge of eight experts on this machine",
)

# %% [markdown]
# ## Two files of your own · short route
#
# A checkpoint is usually a file. Merging files needs neither the network's class nor room for all of them: one layer
# at a time is in memory, and the output appears when it is whole or not at all. Here a base and two experts are
# written into a temporary folder, as `safetensors`, the format of most public checkpoints. First the **pre-flight
# check**, which reads the headers only and says what would stop the merge; then the merge.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from apgd_teach.merging import merge_files, preflight_files
from safetensors.torch import load_file, save_file

PAIR = ("digits-upright", "fashion-upright")
with TemporaryDirectory() as folder:
    here = Path(folder)
    save_file(mild.base, here / "base.safetensors")
    paths_of = {name: here / f"{name}.safetensors" for name in PAIR}
    for name, path in paths_of.items():
        save_file(mild.experts[name], path)
    # One more, from which the last layer is missing.
    broken = {key: one for key, one in mild.experts[PAIR[0]].items() if key != "linear.weight"}
    save_file(broken, here / "broken.safetensors")

    refused = preflight_files(here / "base.safetensors", {"broken": here / "broken.safetensors"})
    report = preflight_files(here / "base.safetensors", paths_of)
    audit = merge_files(
        here / "base.safetensors", paths_of, here / "merged.safetensors", "apgd", progress=False
    )
    from_file = load_file(here / "merged.safetensors")

assert not here.exists()
print(f"the pair: {report.verdict}")
refused.table()

# %% [markdown]
# The broken file would have been refused, with what to do about it. The two others were merged, and the audit says
# what was done to each tensor.

# %%
audit.table()

# %% [markdown]
# `audit.details()` has more on each layer, `audit.policies()` says why a tensor was merged, averaged or kept, and
# `audit.to_json()` is the record to keep beside the file. Is the merged file any good?

# %%
of_two = compare(
    mild.only(list(PAIR)),
    {
        "average of two": merge(mild.base, {name: mild.experts[name] for name in PAIR}, "average"),
        "merged file": from_file,
    },
    images=profile.test_images,
)
beside = of_two.against("merged file", "average of two")
say(
    f"On the two tasks the base has a mean accuracy of {of_two.average('base'):.1f} %, the experts "
    f"{of_two.average('experts'):.1f} %, the average of the two {of_two.average('average of two'):.1f} % and the "
    f"merged file {of_two.average('merged file'):.1f} %. Against the average that is {beside} points: "
    f"{beside.verdict}.",
    holds={"the merged file has the base's tensors": set(from_file) == set(mild.base)},
)

# %% [markdown]
# For your own, put your paths in. They must have been fine-tuned from that very base, or lesson 02's control applies:
#
# ```python
# from apgd_teach.merging import merge_files, preflight_files
#
# base, experts = "base.safetensors", {"mine": "a.safetensors", "theirs": "b.safetensors"}
# print(preflight_files(base, experts).table())
# audit = merge_files(base, experts, "merged.safetensors", "apgd")
# print(audit.table())
# ```
#
# What lies at `merged.safetensors` already is replaced; base and experts are never changed. A folder with a sharded
# Hugging Face model is a path as well. Task heads stay outside: leave them out of the files, or add
# `policy={"head.*": "keep"}` with your own name in place of `head`. A `.pt` file has to be rewritten first:
# `save_file(torch.load("a.pt", weights_only=True), "a.safetensors")`. Then read, in this order: the warnings below
# the audit's table, the column $\lVert M\rVert/\lVert\theta_0\rVert$ (a long step is a bad sign and a short one no
# promise), and last what no audit can tell: measure the merged network on a few labelled examples of every task
# before anybody uses it.
#
# ## What this run showed

# %%
LABELS = [label for label in results["mild"].merged if label != "average"]


def closed_by(result, label):
    """Share of the average's mean gap that is closed (%), and half its 95 % interval over test images."""
    theirs, own = result.merged[label], result.merged["average"]
    less = torch.stack([own[task].losses - theirs[task].losses for task in own]).mean(dim=0)
    # A picture counts once, in however many tasks it is shown.
    unit = 100 / mean(result.gap("average").values())
    return float(less.mean()) * unit, 1.96 * float(less.std()) / len(less) ** 0.5 * unit


shares = {
    regime: {label: closed_by(result, label) for label in LABELS}
    for regime, result in results.items()
}
against = {
    regime: {label: result.against(label, "average") for label in LABELS}
    for regime, result in results.items()
}


def with_margin(value, margin):
    """A share and half its interval, with a minus that is one."""
    return f"{value:.0f} ± {margin:.0f}".replace("-", "−")


Table(
    (
        "experts",
        "method",
        "gap closed %",
        "accuracy",
        "verdict",
        "worst task %",
        "worst task of the average %",
    ),
    [
        (
            regime,
            label,
            with_margin(*shares[regime][label]),
            str(against[regime][label]),
            against[regime][label].verdict,
            result.worst(label)[1],
            result.worst("average")[1],
        )
        for regime, result in results.items()
        for label in LABELS
    ],
    caption="Beside the average of the same experts, on test images",
    note="Gap closed: of the mean gap that averaging leaves. Accuracy: points more than the average. The intervals "
    "(95 %) are over test images; the training seed is lesson 07's.",
)

# %%
OURS = "descent, 1/6 protected"
shown = [regime for regime in results if shares[regime][OURS][0] > shares[regime][OURS][1]]
verdict = "not shown in this run"
if shown:
    verdict = "shown" if len(shown) == 2 else f"shown for {shown[0]} experts only"
price = {regime: result.against(OURS, "descent, free") for regime, result in results.items()}
lost = [
    f"{label} ({regime})"
    for regime in results
    for label in LABELS
    if against[regime][label].verdict == "worse"
]
below = [
    regime
    for regime in results
    if gap[regime]["base"] < min(gap[regime][label] for label in LABELS)
]
say(
    f"**Descent on Δ inside the constraint closes part of the gap that averaging leaves: {verdict}.** This is descent "
    "on `full`, stopped at a step that validation images (with labels) chose; on `row`, which you wrote by hand, it is "
    "another matter (*how many steps*), and so are points of accuracy (the table). With a sixth "
    f"protected it closes {with_margin(*shares['mild'][OURS])} % of it for the mild experts and "
    f"{with_margin(*shares['hot'][OURS])} % for the hot ones; with nothing protected "
    f"{with_margin(*shares['mild']['descent, free'])} % and {with_margin(*shares['hot']['descent, free'])} %. The "
    f"default closes {with_margin(*shares['mild']['apgd (default)'])} % and "
    f"{with_margin(*shares['hot']['apgd (default)'])} %, with no image in the merge (its constants were chosen on "
    "validation images of pools like these).\n\n"
    "**Protecting a sixth**, beside protecting nothing, is in accuracy "
    + " and ".join(
        f"{one} points for {regime} experts ({one.verdict})" for regime, one in price.items()
    )
    + ".\n\n"
    f"**Worse than the average** in accuracy, by the interval: {', '.join(lost) or 'none'}."
    + (
        f"\n\n**The base** has a smaller mean gap than every one of these merges of {' and of '.join(below)} experts: "
        "there, not to merge at all is the better choice."
        if below
        else "\n\n**The base** has a larger mean gap than the best of these merges, of mild and of hot experts."
    ),
    facts={
        "06.mild.closed.descent": shares["mild"][OURS][0],
        "06.hot.closed.descent": shares["hot"][OURS][0],
        "06.mild.closed.default": shares["mild"]["apgd (default)"][0],
        "06.hot.closed.default": shares["hot"]["apgd (default)"][0],
    },
)

# %% [markdown]
# A gap closed in nats and a gain in accuracy are two things; lesson 02 met both ways of their parting. Where a method
# is worse than the average, these are the places to look: a surrogate that watches the diagonal only, while the rest
# of the residual grows (*layer, row, full*); one that was followed further than it is good for (*how many steps*); a
# trim that cuts the solution up after it was found; a long step, where an estimate made for short ones says little;
# or, as published, constants made for other networks.
#
# When should this not be trusted? When the audit warns of long steps, when experts went far (compare mild with hot),
# and whenever nobody has measured the merged network on its tasks. The surrogate falls by construction, and so it
# warns of nothing.
#
# ## Recap
#
# * The merged update is $M = S + \Lambda\Delta$: a weighted sum of the task vectors, and a correction shared by all
#   tasks.
# * $\Delta$ comes from descent on a surrogate of the gaps that needs task vectors only. Each step is projected onto
#   the orthogonal complement of what the tasks share, so that $P(M - S) = 0$ holds all the way.
# * With the step $1/L$ the surrogate never rises. Adam comes without that promise, and it leaks unless it is
#   projected again after every step. A trim leaks too.
# * `layer`, `row` and `full` ask for more and more of the residual to vanish; `full` has its answer in closed form,
#   and to stop early there is a filter on eigenvalues.
# * The surrogate is not the gap. What is worth having of it was measured, and a merge is not finished before that.
#
# ## Try it
#
# 1. Protect nothing in the loop, `U = U[:, :0]`, and then half of all directions, `U = shared_basis(tau, out // 2)`.
#    How much of $Q$ is left after fifty steps in each case? (With nothing protected, `leak` divides zero by zero.)
# 2. Take three times the step, `3 / L`, in the loop. The cell's assertion tells you what happens. And `1.9 / L`? Look
#    at the inequality of step 6: up to which $\alpha$ does it promise that $Q$ does not rise?
# 3. `measure_steps(validation, hot.base, hot.experts)` and `draw_steps`: where is the smallest gap for hot experts?
#    Is it where it was for mild ones?
# 4. Ask the method for soft protection, `merge(mild.base, mild.experts, "apgd", protect="auto", flatten=0.5)`, and
#    compare it on validation images (`compare(…, split="validation")`). Why not on test images?
#
# **Next:** [07 · An honest comparison](07_honest_comparison.ipynb).
#
# *References.* The method: Wei et al., "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
# ICML 2025, [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). `full` with nothing protected: Cheng et al.,
# "Whoever Started the Interference Should End It", ICML 2025, [arXiv 2503.08099](https://arxiv.org/abs/2503.08099).
# Drawing singular values to their mean: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
# Task-Specific Subspaces", ICML 2025, [arXiv 2502.04959](https://arxiv.org/abs/2502.04959). Adam: Kingma and Ba, ICLR
# 2015, [arXiv 1412.6980](https://arxiv.org/abs/1412.6980). Settings, files and audits: `docs/merging.md`.
