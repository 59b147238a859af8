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
from functools import partial

from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)
pool_of = partial(
    make_pool,
    seed=SEED,
    base_steps=profile.base_steps,
    expert_steps=profile.expert_steps,
    source=source,
)
mild = pool_of(regime="mild")
header("06")

# %% [markdown]
# ## The algorithm, line by line · short route
#
# A network is merged layer by layer; this section stays in **one** layer, whose weights are a matrix (out, in), one
# row per output unit (of a convolution kernel, (out, in · height · width)). Task $j = 1, \dots, T$ has the task vector
# $\tau_j = \theta_j - \theta_0$, what fine-tuning changed. A merge adds one matrix $M$, the **update**:
# $\theta^* = \theta_0 + M$. The average takes $M = \frac{1}{T}\sum_i \tau_i$.
#
# **1. The start.** Each task gets a coefficient $\lambda_i$ of its own in place of $1/T$,
#
# $$S = \sum_i \lambda_i \tau_i, \qquad
# \lambda_i = \min\left(1, \frac{\operatorname{median}_j \lVert\tau_j\rVert}{T\, \lVert\tau_i\rVert}\right),$$
#
# so that a long task vector has no more say than a short one. $\lVert\cdot\rVert$ is the root of the sum of squares.

# %%
import torch
from apgd_teach.merging import merge, shared_basis, task_vectors

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
# **2. What may change.** One matrix $\Delta$ (out, in), the same for all tasks, is added to every task vector:
#
# $$M = \sum_i \lambda_i (\tau_i + \Delta) = S + \Lambda\Delta, \qquad \Lambda = \sum_i \lambda_i .$$
#
# A step of $\Delta$ is a step of $M$, only $\Lambda$ times as long, so we move $M$ itself.
#
# **3. What is made small.** Nobody knows the gap of task $j$ without data. To first order it is
# $L_j(\theta_0 + M) - L_j(\theta_0 + \tau_j) \approx \langle\nabla L_j(\theta_0), M - \tau_j\rangle$, where
# $\langle\cdot,\cdot\rangle$ multiplies entry by entry and adds up. Fine-tuning went *down* $L_j$, so $-\tau_j$ points
# roughly along the gradient (lesson 04 measures how roughly), which leaves $-\langle\tau_j, M - \tau_j\rangle$, up to a
# positive factor. One output unit $o$ at a time, with $\tau_{jo}$ and $M_o$ for row $o$:
#
# $$r_{jo} = \langle \tau_{jo}, M_o - \tau_{jo}\rangle .$$
#
# The estimate falls for ever as $r_{jo}$ grows, so its smallest value is no aim. Zero is: in unit $o$, $M$ then goes as
# far along task $j$'s own direction as its expert did. (These numbers are the diagonal of the **residual**
# $R_j = (M - \tau_j)\tau_j^\top$.) All together make the **surrogate**, which stands in for the gaps (the paper's,
# granularity `row`):
#
# $$Q(M) = \tfrac{1}{2} \sum_j \sum_o r_{jo}^2 .$$
#
# **4. The gradient.** $r_{jo}$ depends on row $o$ of $M$ only, and $\partial r_{jo} / \partial M_o = \tau_{jo}$. So,
# by the chain rule, row $o$ of $\nabla Q$ is
#
# $$\frac{\partial Q}{\partial M_o} = \sum_j r_{jo}\, \frac{\partial r_{jo}}{\partial M_o}
# = \sum_j r_{jo}\, \tau_{jo} .$$
#
# This is yours. (Stuck? `problem("06.1").hint(1)`, or `.solution()`.)

# %%
problem("06.1")


# %% tags=["exercise"]
def row_gradient(task_vectors, update):
    # your code: begin
    residual = (task_vectors * (update - task_vectors)).sum(dim=2, keepdim=True)
    return (residual * task_vectors).sum(dim=0)
    # your code: end


problem("06.1").check(row_gradient)

# %% [markdown]
# **5. What must stay.** Some output directions are used by several tasks. Lesson 05 collects them as the orthonormal
# columns of $U$ (out, $k$). $P = UU^\top$ projects onto them, $I - P$ onto their **orthogonal complement**, all that is
# at right angles to them. What the tasks have in common $S$ has already, goes the argument, and a rough estimate could
# only spoil it (lesson 05 measures how much of it $S$ has, and what the protection costs); so there $S$ is kept: $P(M -
# S) = 0$. A step, of length $\alpha$, uses the part of the gradient that lies in the complement:
#
# $$M \leftarrow M - \alpha\,(I - P)\nabla Q(M) .$$
#
# The constraint then holds after every step if it held before, because projecting twice is projecting once, $PP = P$:
#
# $$P\big(M - \alpha(I-P)\nabla Q - S\big) = P(M - S) - \alpha\,(P - PP)\,\nabla Q = P(M - S) .$$

# %%
row_gradient = problem("06.1").use(row_gradient)
problem("06.2")


# %% tags=["exercise"]
def projected_step(update, gradient, basis, rate):
    # your code: begin
    free = gradient - basis @ (basis.T @ gradient)
    return update - rate * free
    # your code: end


problem("06.2").check(projected_step)

# %%
projected_step = problem("06.2").use(projected_step)
problem("06.3")


# %% tags=["exercise"]
def leak(update, start, basis):
    # your code: begin
    return float((basis.T @ (update - start)).norm() / (basis.T @ start).norm())
    # your code: end


problem("06.3").check(leak)

# %% [markdown]
# **6. How far to step.** With the step $\alpha = 1/L$, where $L$ is the largest curvature of $Q$ in the complement, the
# surrogate cannot rise (the proof is below, in depth). Now the loop.
#
# > **Predict before you run.** After fifty steps, how much of the surrogate is left: a half, a tenth, a thousandth?
# > And how large is the leak?

# %%
from apgd_teach.merging.descent import largest_curvature
from apgd_teach.tables import Table

leak = problem("06.3").use(leak)


def Q(update):
    """½ Σⱼ Σₒ rⱼₒ², of this layer."""
    return (tau * (update - tau)).sum(dim=2).square().sum() / 2


def curvature(direction):
    """H D, of this layer."""
    return row_gradient(tau, direction) - row_gradient(tau, torch.zeros_like(direction))


U = shared_basis(tau, min(out, inputs) // 6)  # the paper protects a sixth of r = min(out, in)
L = largest_curvature(curvature, U, row_gradient(tau, S))
STEPS = 50
M, way = S, [(float(Q(S)), 0.0)]
for _ in range(STEPS):
    M = projected_step(M, row_gradient(tau, M), U, 1 / L)
    way.append((float(Q(M)), leak(M, S, U)))
    assert way[-1][0] <= way[-2][0] + 1e-5 * way[0][0], "the surrogate rose"

Table(
    ("step", "Q left, % of that at S", "leak"),
    [(n, 100 * way[n][0] / way[0][0], f"{way[n][1]:.0e}") for n in (0, 1, 2, 5, 10, 20, 50)],
    caption=f"{LAYER}, {U.shape[1]} of {out} output directions protected, by your functions",
    digits=2,
)

# %% [markdown]
# The leak is float32 rounding. And the estimate of the gap was *first order*, for short steps: a surrogate of zero
# promises no gap of zero.
#
# ### Why the surrogate cannot rise · in depth
#
# $Q$ is a sum of squares of linear functions of $M$, so it has one Hessian $H$ everywhere; what $H$ does to a direction
# $D$ is a difference of two gradients, $HD = \nabla Q(D) - \nabla Q(0)$. With
# $g = (I - P)\nabla Q(M)$, a step changes $Q$ by exactly
#
# $$Q(M - \alpha g) - Q(M) = -\alpha \langle\nabla Q, g\rangle + \tfrac{1}{2}\alpha^2 \langle g, Hg\rangle .$$
#
# Here $\langle\nabla Q, g\rangle = \lVert g\rVert^2$, since $g$ is a projection of $\nabla Q$, and
# $\langle g, Hg\rangle \le L\lVert g\rVert^2$, with $L$ the largest curvature of $Q$ in the complement. So with
# $\alpha = 1/L$
#
# $$Q(M - \alpha g) - Q(M) \le -\frac{1}{L}\lVert g\rVert^2 + \frac{1}{2L}\lVert g\rVert^2
# = -\frac{1}{2L}\lVert g\rVert^2 \le 0 :$$
#
# the surrogate cannot rise. (The library finds $L$ by applying $H$ again and again, until the steepest direction has
# outgrown all others.)

# %% [markdown]
# ### Beside autograd and the library · in depth
#
# Autograd knows nothing of the derivation, and the library's `Apgd` nothing of your functions. It solves this layer by
# fifty steps of its own descent, and by the **exact answer** that descent is heading to. (The paper's abstract says
# that gradients are projected *within* the shared subspace. Its method and its code project onto the complement, as
# here.)

# %%
from apgd_teach.course.prose import say
from apgd_teach.merging import Apgd

known = torch.func.grad(Q)(S)
torch.testing.assert_close(
    row_gradient(tau, S), known, rtol=1e-3, atol=1e-4 * float(known.abs().max())
)
one_layer = partial(Apgd, granularity="row", protect=1 / 6, flatten=0.0)
library = one_layer(solver="descent", steps=STEPS).solve(tau)
exact = one_layer(solver="exact").solve(tau)

apart = float((M - library.update).norm() / (library.update - S).norm())
left = 100 * float(Q(exact.update)) / way[0][0]
bold = float(exact.delta.norm() / lengths.square().mean().sqrt())
say(
    f"Autograd agrees. Your $M$ and the library's differ by {100 * apart:.1g} % of the way that both went. Of $Q$ at "
    f"$S$ the exact answer leaves {left:.1g} %: far more entries of $M$ are free than there are numbers $r_{{jo}}$. "
    f"There $\\Delta$ is {bold:.2g} times as long as a task vector (root mean square), which is no short step.",
    holds={
        "the learner's loop is the library's descent": apart < 0.05,
        "no step leaks": max(one for _, one in way) < 1e-4,
        "the exact answer has the least surrogate": float(Q(exact.update)) <= way[-1][0],
    },
)

# %% [markdown]
# ## Adam leaks, projecting again holds
#
# The paper hands the projected gradient to **Adam**, which divides every entry by the root of a running mean of that
# entry's own square. Its first step keeps nothing but the signs. With three output units and one shared direction $u$:

# %%
u = torch.ones(3) / 3**0.5
gradient = torch.tensor([2.0, -1.0, -1.0])
print(f"the projected gradient along u: {float(u @ gradient):.2f}")
print(f"Adam's first step along u:      {float(u @ gradient.sign()):.2f}")

# %% [markdown]
# The division undid the projection, and the constraint is lost, whether or not a network suffers from it. The cure is
# to project once more, afterwards. For one step, Adam's momentum left aside, that is still a way down: with $A$ the
# division (a positive number for each entry) and $g = (I - P)\nabla Q$,
#
# $$\langle \nabla Q, (I - P)Ag\rangle = \langle (I - P)\nabla Q, Ag\rangle = \langle g, Ag\rangle > 0 .$$
#
# Three ways from the same $S$, with the same $U$. (Accuracy: of the average network with this layer replaced, on
# *validation* images; in `fast` on so few that one or two decide what you see.)
#
# > **Predict before you run.** Whose surrogate is smallest after 400 steps? And of $PS$, which was to stay, has Adam
# > moved a hundredth, a tenth, more?

# %%
from apgd_teach.course.prose import say
from apgd_teach.evaluate import Evaluator, compare
from apgd_teach.figures import Slider, draw_descent, layer_accuracy, measure_descent, panel

validation = Evaluator(mild, images=profile.plane_images, split="validation")
average = merge(mild.base, mild.experts, "average").state_dict
paths = measure_descent(
    tau,
    steps=400,
    rate=0.1 * float(tau.square().mean().sqrt()),  # Adam's, in units of the weights
    accuracy=layer_accuracy(validation, average, LAYER),
    at=(0, 30, 100, 400),
)
panel(
    lambda step: draw_descent(paths, step=step),
    title="Three ways down, one layer",
    static=[{"step": 10}, {"step": 400}],
    step=Slider("steps taken", [0, 1, 2, 5, 10, 20, 30, 50, 100, 200, 300, 400], start=400),
)

# %%
descent, adam, again = paths.descent, paths.adam, paths.again
say(
    f"After 400 steps Adam's leak is **{100 * adam.leak[-1]:.0f} %** of all that was to stay, ‖PS‖. Projected again it "
    f"is {100 * again.leak[-1]:.0e} %, rounding, as with plain descent. Of the surrogate plain descent has left "
    f"{100 * descent.surrogate[-1]:.2g} %, Adam {100 * adam.surrogate[-1]:.2g} % and Adam projected again "
    f"{100 * again.surrogate[-1]:.2g} %. "
    + (
        f"It rose on {descent.rises}, {adam.rises} and {again.rises} steps."
        if any((descent.rises, adam.rises, again.rises))
        else "It rose on no step of any of them."
    ),
    holds={
        "Adam leaks": max(adam.leak) > 1e-3,
        "the two others hold": max(*again.leak, *descent.leak) < 1e-4,
        "plain descent never rises": descent.rises == 0,
    },
    facts={"06.adam_leak": 100 * adam.leak[-1]},
)

# %% [markdown]
# ## How much of the residual: layer, row, full · in depth
#
# The residual $R_j$ is a matrix (out, out), and the estimated gap is, up to its sign and a factor, its *trace*, the sum
# of its diagonal. How much of $R_j$ is driven to zero is a choice, the **granularity**:
#
# | granularity | what is made small | numbers per task |
# |---|---|---|
# | `layer` | $(\operatorname{tr} R_j)^2$ | 1, the estimate itself |
# | `row` | $\lVert\operatorname{diag} R_j\rVert^2$ | out; the paper's |
# | `full` | $\lVert R_j\rVert^2 / \lVert\tau_j\rVert^2$ | out × out |
#
# What `full` brings to zero is zero for the other two as well. Below is $|R|$ of one task in `conv2.weight`, at $S$ and
# at the exact solution of each granularity.
#
# > **Predict before you run.** `row` brings the diagonal to zero. What happens to the rest of $R$ meanwhile? And what
# > does it cost to leave a sixth of the directions alone?

# %%
from apgd_teach.figures import draw_residual, measure_residuals

titles = [mild.tasks[name].title for name in names]
FREE, HELD = "nothing", "1/6 of r"
PROTECT = {FREE: 0.0, HELD: 1 / 6}
residuals = measure_residuals(
    torch.stack([vectors[name]["conv2.weight"].flatten(1) for name in names]),
    titles,
    protect=PROTECT,
    size=48,
)
panel(
    lambda task, held: draw_residual(residuals, task=task, held=held),
    title="What M keeps of a task",
    static=[{"held": held} for held in PROTECT],
    task=Slider("task", titles),
    held=Slider("protected", list(PROTECT)),
)

# %%
left, far = residuals.left, residuals.moved[FREE]
say(
    f"Of the whole residual $S$ leaves {left(FREE, 'S'):.0f} % (mean over the tasks). A zero of `row` says little: it "
    f"leaves {left(FREE, 'row'):.0f} %, with a sixth protected {left(HELD, 'row'):.0f} %, since in the sum over a "
    f"unit's inputs errors of opposite sign cancel. `full` leaves {left(FREE, 'full'):.0f} % "
    f"({left(HELD, 'full'):.0f} %): however far its $M$ lies from $S$ ({far['full']:.2g} task vectors, that of `row` "
    f"{far['row']:.2g}), it differs from $\\tau_j$ mostly along input directions that $\\tau_j$ hardly used, and "
    "$\\tau_j$, a sum of gradients, is made of task $j$'s inputs.",
    holds={
        "row brings the diagonal to zero": max(left(one, "row", "diagonal") for one in PROTECT) < 1,
        "full leaves less than row": all(left(one, "full") < left(one, "row") for one in PROTECT),
    },
)

# %% [markdown]
# Where protecting costs most of what `full` would have gained, the tasks write much of what they write in the shared
# directions (lesson 05 measures how much), and there $M$ must stay $S$. (Every point of the maps is a mean over a few
# entries, so a diagonal of zeros cannot be seen on them: the numbers below them count it.)
#
# Is that the right place to head for? In the **laboratory** of lesson 04, whose losses are parabolas, the best $M$ with
# $P(M - S) = 0$ is known, the *projected optimum*:

# %%
from apgd_teach.figures import measure_arrival
from apgd_teach.merging import make_laboratory

arrival = measure_arrival(make_laboratory(n_tasks=3, seed=SEED), protect=1 / 6)
distance, closed = arrival.distance, arrival.closed
say(
    "Given the true losses, descent inside the constraint **arrives**: the distance to the projected optimum falls to "
    f"{distance['true losses'][-1]:.1g} % of what it was. Of the base's gap that closes {arrival.best:.0f} %, $S$ "
    f"{closed['row'][0]:.0f} %; following `full` one ends at {closed['full'][-1]:.0f} %, following `row` at "
    f"{closed['row'][-1]:.0f} %{', worse than at the start' if closed['row'][-1] < closed['row'][0] else ''} "
    "(with three tasks and a constraint; the ways of lesson 04's laboratory had two tasks). But here task vectors "
    "remember their inputs; where they do not, `full` fails too (lesson 04, in depth).",
    holds={"with the true losses, descent arrives": distance["true losses"][-1] < 1},
)

# %% [markdown]
# ### All numbers of this section · in depth
#
# Of the residual, all tasks together:

# %%
residuals.table()

# %% [markdown]
# And of the laboratory, in which where a way ends and where it was best need not be the same:

# %%
from apgd_teach.figures import draw_arrival, show

show(draw_arrival(arrival))

# %%
arrival.table()

# %%
say(
    "The most that each surrogate closes on its way: "
    + ", ".join(
        "`{}` {:.1f} % after {:,} steps".format(name, *arrival.peak(name))
        for name in ("row", "full")
    )
    + ".",
    holds={
        "no update inside the constraint closes more than the projected optimum": all(
            max(one) <= arrival.best + 1e-6 for one in closed.values()
        )
    },
)

# %% [markdown]
# The laboratory is built so that task vectors *remember* the covariances of the inputs, since its experts came by
# gradient descent from a common base. Lesson 04 has one in which they do not.

# %% [markdown]
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
from apgd_teach.merging import projector
from apgd_teach.merging.descent import descend
from apgd_teach.merging.objective import objective

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
# ## The whole method in one call · short route
#
# `merge(base, experts, "apgd")` goes through all layers; but its defaults are *not* the loop above. They keep the idea,
# residuals made small, and did best on labelled validation images of pools like this one, with this one among them
# (`benchmarks/settings.md` and `benchmarks/reach.md`; lesson 07 has pools that chose nothing):
#
# * granularity `full`: the whole of $R_j$ is to vanish, not its diagonal only. A strong singular direction of a task
#   counts somewhat less than in $\lVert R_j\rVert^2$ (lesson 07, in depth);
# * solved directly, imitating descent that stops early, with **nothing protected**;
# * a bias is a **column** of its weight, what an input that is always 1 is multiplied by: the two are one matrix;
# * the singular values of $M$ are **flattened**, drawn three quarters of the way to their mean: a few directions, those
#   that several tasks have in common, may otherwise make most of $M$;
# * and none of them is longer than a **reach** allows. What a first order leaves out is made of products of two
#   changes, so the longest direction of $M$ times an expert's typical one, $\bar\tau/\sqrt r$ with $\bar\tau$ the mean
#   of $\lVert\tau_i\rVert$, is kept below 4 % of the square of the base's typical one, $\lVert\theta_0\rVert/\sqrt r$.
#   Experts that went far make the limit short.
#
# Beside it, on mild and on *hot* experts (lesson 02):
#
# * *apgd, not flattened* and *apgd, no limit*: the same without one piece;
# * *S*: the start, without any descent;
# * *descent, 1/6 protected*: from there, on `full`, as many steps as validation images of the mild experts chose;
#   *descent, free*: with nothing protected;
# * *the paper*, which is our reading of its text: `row`, a sixth protected, solved exactly, and a **trim**: of each
#   expert only the 30 % largest $|\tau_i|$ in the whole network are kept, and $\tau_i + \Delta$ is set to zero
#   elsewhere;
# * *the published code*: what the paper's public code computes, with Adam, its constants and its trim.
#
# > **Predict before you run.** Which of them beat the average of the mild experts? And which that of the hot ones?

# %%
from apgd_teach.figures import descended, measure_steps, timed_merges
from apgd_teach.merging import PAPER, Apgd, TaskAware

CALLS = {
    "average": "average",
    "apgd (default)": "apgd",
    "apgd, not flattened": Apgd(flatten=0.0),
    "apgd, no limit": Apgd(reach=None),
    "the paper": PAPER,
    "the published code": "apgd_published",
}
OURS, FREELY = "descent, 1/6 protected", "descent, free"
WALKED = {OURS: "full, 1/6 protected", FREELY: "full, nothing protected"}
START = "S"
pools = {"mild": mild, "hot": pool_of(regime="hot")}
stops = measure_steps(validation, mild.base, mild.experts)
merged, seconds = {}, {}
for regime, pool in pools.items():
    merged[regime], seconds[regime] = timed_merges(pool.base, pool.experts, CALLS)
as_many = {way: stops.chosen[way] for way in WALKED.values()}
walked = {}
for regime, pool in pools.items():
    ends = stops.networks if regime == "mild" else descended(pool.base, pool.experts, as_many)
    walked[regime] = {START: merge(pool.base, pool.experts, TaskAware(1 / T))}
    walked[regime] |= {label: ends[way] for label, way in WALKED.items()}

# %%
from dataclasses import replace

from apgd_teach.figures import draw_methods, outcome_table

results = {}
for regime, pool in pools.items():
    result = compare(pool, {**merged[regime], **walked[regime]}, images=profile.test_images)
    # Labelled images of the validation split chose the number of steps.
    used = {**result.data_used, START: "none", **dict.fromkeys(WALKED, "labelled")}
    results[regime] = replace(result, data_used=used)
panel(
    lambda experts: draw_methods(results[experts]),
    title="The methods beside each other",
    static=[{"experts": "mild"}, {"experts": "hot"}],
    experts=Slider("experts", list(results)),
)

# %%
outcome_table(results)

# %% [markdown]
# ## How many steps? A lower surrogate is not always a better network · in depth
#
# The numbers of steps above were chosen here: projected descent in every weight matrix (biases are averaged), the same
# number of steps everywhere, and the whole network scored on validation images: the gap itself, of which the surrogate
# is to be the stand-in, and the accuracy.
#
# > **Predict before you run.** The surrogate falls with every step. Will the gap?

# %%
from apgd_teach.figures import draw_steps

show(draw_steps(stops))

# %%
say(
    f"At $S$ the mean gap is {stops.gaps['row, 1/6 protected'][0]:.3f} nats, at the base {stops.base_gap:.3f}. On "
    "these validation images:\n\n"
    + "\n".join(f"* *{way}*: {stops.course(way)}." for way in stops.steps)
    + "\n\nThe surrogate fell all the time.",
    holds={
        "the surrogate falls with every step": all(
            list(one) == sorted(one, reverse=True) for one in stops.surrogate.values()
        ),
    },
)

# %% [markdown]
# The surrogate is what descent sees, the gap and the accuracy are what users feel, and these two need not agree either
# (lesson 02): compare the two panels of the picture at the same step. (`row` is walked for a hundred steps, one by one;
# of `full` any number of steps can be computed at once.) Where surrogate and gap part, more descent is worse, and the
# surrogate does not say so: validation images chose the number of steps. Without any data one has to settle it
# beforehand, which is what the defaults of a method are.

# %% [markdown]
# ## Was the constraint kept? · in depth
#
# Every audit states two leaks $\lVert P(M-S)\rVert / \lVert PS\rVert$: of the $M$ that was
# solved, and of the one that was merged, after the trim. And the step $\lVert M\rVert / \lVert\theta_0\rVert$: the
# estimate of the gaps was made for short ones.

# %%
from apgd_teach.figures import constraint_table

constraint_table(merged)

# %%
from apgd_teach.figures import largest_fact

paper, published = (merged["mild"][label].audit for label in ("the paper", "the published code"))
solved, trimmed = (largest_fact(paper, fact) for fact in ("leak", "leak_merged"))
say(
    f"Solved exactly, the paper's constraint holds ({solved:.1g} % leak in the worst layer of the mild experts), and "
    f"the trim breaks it ({trimmed:.0f} %). In the published code Adam has let {largest_fact(published, 'leak'):.0f} "
    "% through before the trim came. The constraint is a property of the $M$ that was solved, not of the network "
    "handed over.",
    holds={
        "the solved M keeps the constraint": solved < 0.1,
        "the trim breaks the constraint": trimmed > 1,
    },
    facts={"06.trim_leak": trimmed},
)

# %% [markdown]
# ## What it costs, and the base beside it · in depth
#
# To whoever runs the merged network: nothing that the base did not cost. Same tensors, same shapes, no head more. To
# whoever merges: one solution per layer, once.

# %%
base_numbers = sum(tensor.numel() for tensor in mild.base.values())
extra = {
    label: sum(tensor.numel() for tensor in one.state_dict.values()) - base_numbers
    for label, one in merged["mild"].items()
}
say(
    f"The base has {base_numbers:,} parameters. Extra parameters: "
    + ", ".join(f"{label} {count}" for label, count in extra.items())
    + f". Keeping all {T} experts instead would take {T * base_numbers:,}.",
    holds={"no merge adds a parameter": not any(extra.values())},
)

# %% tags=["machine"]
Table(
    ("method", "seconds, mild", "seconds, hot"),
    [(label, *(by[label] for by in seconds.values())) for label in CALLS],
    caption="Seconds for one merge of eight experts on this machine",
)

# %% [markdown]
# And what each recovers of the way from the base to the experts, with the task on which it is worst:

# %%
results["mild"].summary()

# %%
results["hot"].summary()

# %% [markdown]
# ## Two files of your own · short route
#
# Merging files needs neither the network's class nor room for all of them: one layer at a time is in memory. First the
# **pre-flight check**, which reads the headers only and says what would stop the merge; then the merge.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from apgd_teach.merging import merge_files, preflight_files
from safetensors.torch import load_file, save_file

PAIR = ("digits-upright", "fashion-upright")
# One more, from which the last layer is missing.
broken = {key: one for key, one in mild.experts[PAIR[0]].items() if key != "linear.weight"}
tensors = {"base": mild.base, "broken": broken, **{name: mild.experts[name] for name in PAIR}}
with TemporaryDirectory() as folder:
    files = {name: Path(folder) / f"{name}.safetensors" for name in (*tensors, "merged")}
    for name, one in tensors.items():
        save_file(one, files[name])
    pair = {name: files[name] for name in PAIR}
    refused = preflight_files(files["base"], {"broken": files["broken"]})
    print(f"the pair: {preflight_files(files['base'], pair).verdict}")
    audit = merge_files(files["base"], pair, files["merged"], "apgd", progress=False)
    from_file = load_file(files["merged"])

refused.table()

# %% [markdown]
# The broken file would have been refused. The two others were merged, and this was done to each tensor:

# %%
audit.table()

# %%
two = mild.only(PAIR)
of_two = compare(
    two,
    {"average": merge(two.base, two.experts, "average"), "merged file": from_file},
    images=profile.test_images,
)
beside = of_two.against("merged file", "average")
say(
    f"On the two tasks the base is right in {of_two.average('base'):.1f} %, the experts in "
    f"{of_two.average('experts'):.1f} % and the merged file in {of_two.average('merged file'):.1f} %: against the "
    f"average of the two {beside} points, {beside.verdict}.",
)

# %% [markdown]
# For your own files, all fine-tuned from that very base (lesson 02's control):
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
# Task heads stay outside: leave them out of the files, or add `policy={"head.*": "keep"}`. A `.pt` file has to be
# rewritten first: `save_file(torch.load("a.pt", weights_only=True), "a.safetensors")`. Read the warnings below the
# audit's table and its last column (a long step is a bad sign, a short one no promise), and measure the merged network
# on a few labelled examples of every task.

# %% [markdown]
# ## What this run showed · short route

# %%
from apgd_teach.figures import gap_closed

NAMED = {
    "base": "the base: no merge at all",
    START: "S, from which descent starts",
    OURS: "descent on `full`, a sixth protected",
    FREELY: "descent on `full`, nothing protected",
    "apgd (default)": "the default, which looks at no image",
}
share = {
    label: {regime: gap_closed(result, label) for regime, result in results.items()}
    for label in NAMED
}
Table(
    ("network", *(f"{one}: {what}" for one in results for what in ("gap closed %", "accuracy"))),
    [
        (
            name,
            *(
                cell
                for regime, result in results.items()
                for cell in (str(share[label][regime]), result.against(label, "average").told)
            ),
        )
        for label, name in NAMED.items()
    ],
    caption="Against the average of the same experts",
    note="Gap closed: of the mean gap (nats) that the average leaves. Accuracy: points more than the average has. "
    "Intervals: 95 %, over test images.",
)

# %%
shown = [regime for regime, one in share[OURS].items() if one.shown]
accuracy = {regime: result.against(OURS, "average").told for regime, result in results.items()}


def beside(label):
    """What one network closes, by the kind of experts."""
    return " and ".join(f"{one} % ({regime})" for regime, one in share[label].items())


say(
    "**Descent on Δ inside the constraint closes part of the gap that averaging leaves: "
    + (f"shown for {' and '.join(shown)} experts" if shown else "not shown in this run")
    + ".** This is descent on `full`, of "
    + f"{stops.chosen[WALKED[OURS]]:,} steps, which labelled validation images of the mild experts chose"
    + (
        " (the most that were looked at, so nothing was stopped)"
        if stops.chosen[WALKED[OURS]] == max(stops.steps[WALKED[OURS]])
        else ""
    )
    + f": it closes {beside(OURS)}. In accuracy that is "
    + " and ".join(f"{told} ({regime})" for regime, told in accuracy.items())
    + ". **The constraint is no help to it here**: with nothing protected descent closes "
    * all(share[FREELY][one].share > share[OURS][one].share for one in results)
    + ". With nothing protected descent closes "
    * any(share[FREELY][one].share <= share[OURS][one].share for one in results)
    + f"{beside(FREELY)}. The base, which is not to merge at all, closes {beside('base')}.\n\n"
    f"**On `row`, which your loop minimised,** {stops.course('row, 1/6 protected')}, "
    f"where $S$ has {stops.gaps['row, 1/6 protected'][0]:.3f}, in validation images of the mild experts.",
    facts={f"06.{regime}.closed.descent": one.share for regime, one in share[OURS].items()},
)

# %% [markdown]
# The surrogate falls by construction, so it cannot warn: neither of too long a descent, nor of a trim, nor of a long
# step.

# %% [markdown]
# ## Recap
#
# * $M = S + \Lambda\Delta$: a weighted sum of the task vectors, and a correction shared by all tasks.
# * $\Delta$ comes from descent on a surrogate of the gaps; each step is projected onto the complement of what the tasks
#   share, so $P(M - S) = 0$ holds.
# * With the step $1/L$ the surrogate never rises. Adam leaks unless projected again.
# * `layer`, `row`, `full`: more and more of the residual is to vanish.
# * The surrogate is not the gap: measure that.
#
# **Next:** [07 · An honest comparison](07_honest_comparison.ipynb).

# %% [markdown]
# ## Try it · in depth
#
# 1. Protect nothing in the loop, `U = U[:, :0]`, and then half of all directions, `U = shared_basis(tau, out // 2)`.
#    How much of $Q$ is left after fifty steps in each case? (With nothing protected, `leak` divides zero by zero.)
# 2. Take three times the step, `3 / L`, in the loop. The assertion tells you what happens. And `1.9 / L`? Look
#    at the inequality of step 6: up to which $\alpha$ does it promise that $Q$ does not rise?
# 3. `measure_steps(validation, hot.base, hot.experts)` with `hot = pools["hot"]` and an `Evaluator` of its own:
#    where does `draw_steps` show the smallest gap for hot experts? Is it where it was for mild ones?
# 4. Ask the method for soft protection, `merge(mild.base, mild.experts, "apgd", protect="auto", flatten=0.5)`, and
#    compare it on validation images (`compare(…, split="validation")`). Why not on test images?
#
# *References.* The method: Wei et al., "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
# ICML 2025, [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). `full` with nothing protected: Cheng et al.,
# "Whoever Started the Interference Should End It", ICML 2025, [arXiv 2503.08099](https://arxiv.org/abs/2503.08099).
# Drawing singular values to their mean: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
# Task-Specific Subspaces", ICML 2025, [arXiv 2502.04959](https://arxiv.org/abs/2502.04959). Adam: Kingma and Ba, ICLR
# 2015, [arXiv 1412.6980](https://arxiv.org/abs/1412.6980). Settings, files and audits: `docs/merging.md`.
