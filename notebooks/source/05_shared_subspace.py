# %% [markdown]
# # 05 · The shared subspace
#
# **By the end you will have shown that** what the tasks share is a subspace that you can compute and protect.
#
# *Before this:* [04 · The gap](04_the_gap.ipynb).

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch

# %%
from functools import partial

from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)

# Base and experts in this profile's size, from the cache where they are there.
steps = {"base_steps": profile.base_steps, "expert_steps": profile.expert_steps}
pool_of = partial(make_pool, seed=SEED, source=source, **steps)
pools = {regime: pool_of(regime=regime) for regime in ("mild", "hot")}
tasks = pools["mild"].tasks

# %% tags=["machine"]
header("05")

# %% [markdown]
# ## What an update reads, and what it writes
#
# What must **not** move when lesson 06 goes down the slope of lesson 04? The method argues: what all experts changed in
# the same way, their sum has already, and a descent that follows an estimate can only spoil it. So find what the tasks
# share, and protect it.
#
# Where a linear layer turns its input $x$ into $\theta_0 x$, an expert adds $\tau x$. With the singular value
# decomposition $\tau = U \Sigma V^\top$, whose singular values are $s_k$,
#
# $$\tau x = \sum_k s_k \, (v_k^\top x) \, u_k .$$
#
# From the right: $v_k^\top x$ asks how much of the direction $v_k$ there is in the *input*, $s_k$ is how strongly the
# layer answers, and $u_k$ is the direction of the *output* into which it writes. $\tau$ has shape (out, in), and there
# are $r = \min(\text{out}, \text{in})$ of each. Tasks show a layer different inputs, but write into the same output
# units. So we look in the $u_k$ for what they share.

# %%
problem("05.1")

# %% tags=["exercise"]
import torch


def output_basis(task_vector, count):
    # your code: begin
    U, S, Vh = torch.linalg.svd(task_vector, full_matrices=False)  # noqa: RUF059
    return U[:, :count]
    # your code: end


problem("05.1").check(output_basis)

# %% [markdown]
# Stuck? `problem("05.1").hint(1)`, then `hint(2)`; `problem("05.1").solution()` shows an answer.

# %% [markdown] tags=["solution"]
# PyTorch gives $V$ already transposed, as `Vh`, with one direction per *row*.

# %%
output_basis = problem("05.1").use(output_basis)

# %% [markdown]
# On real task vectors, one tensor (task, out, in) per layer; of each task we take the first `r // T` directions.

# %%
from apgd_teach.figures import layer_vectors

taus = {name: layer_vectors(pool.base, pool.experts) for name, pool in pools.items()}
LAYER = "linear.weight"  # the encoder's last layer
tau = taus["mild"][LAYER]
T, out, columns = tau.shape
r = min(out, columns)
vectors = dict(zip(sorted(tasks), tau, strict=True))  # tasks are in the order of their names
f"{LAYER}: {T} task vectors ({out}, {columns}); r = {r}, r // T = {r // T}"

# %% [markdown]
# ## The projector
#
# Let $U$ (out, $k$) hold $k$ orthonormal columns, $U^\top U = I$. For any matrix $X$ with out rows,
#
# $$P = U U^\top, \qquad P X = U (U^\top X).$$
#
# $U^\top X$ are the coordinates of $X$ in the subspace; $U$ turns them back into outputs. Three facts:
#
# * $P P = U (U^\top U) U^\top = U U^\top = P$: what is in the subspace stays as it is;
# * $P^\top = P$, so $\langle P X, (I - P) X \rangle = \langle X, (P - P P) X \rangle = 0$: the part inside and the part
#   outside are at a right angle;
# * $\operatorname{tr} P = k$: of an $X$ that has nothing to do with $U$, the share $\lVert P X \rVert^2 / \lVert X
#   \rVert^2$ inside is $k / \text{out}$ on average, the **chance share**.

# %%
UPRIGHT = "digits-upright"
U = output_basis(vectors[UPRIGHT], r // T)
noise = torch.randn(out, columns, generator=torch.Generator().manual_seed(SEED))


def inside(matrix, basis):
    """The share of a matrix (out, in) that lies in the subspace of a basis (out, k), in per cent."""
    return 100 * float((basis.T @ matrix).square().sum() / matrix.square().sum())


say(
    f"Of a random matrix {inside(noise, U):.1f} % lies in the subspace; the chance share is "
    f"{100 * U.shape[1] / out:.1f} %. Of the task vector that the subspace comes from, it is "
    f"{inside(vectors[UPRIGHT], U):.1f} %.",
)

# %% [markdown]
# ## Do two tasks write into the same directions? · in depth
#
# Two subspaces have as many angles between them as they have directions, the **principal angles**. With orthonormal
# $U_1$ and $U_2$ (out, $k$) their cosines are the singular values of $U_1^\top U_2$: $0°$ for a direction that both
# have, $90°$ for one at a right angle to all of the other.
#
# > **Predict before you run.** Digits and clothes: two experts that never saw the same picture, fine-tuned from one
# > base. Do they write into the same output directions more than two random subspaces would?

# %%
from apgd_teach.figures import draw_angles, measure_angles, show

pair = (UPRIGHT, "fashion-upright")
angles = measure_angles(
    *(vectors[one] for one in pair),
    tuple(tasks[one].title for one in pair),
    ranks=(1, 2, 4, 8, 16, 32, r // T, 64, 96),
)
show(draw_angles(angles, rank=r // T))

# %%
from statistics import median

found, (chance, _, _) = angles.angles[r // T], angles.random[r // T]
say(
    f"The smallest angle is {found[0]:.0f}° (random subspaces: {chance[0]:.0f}°), the median {median(found):.0f}° "
    f"({median(chance):.0f}°): these two experts share somewhat more than random subspaces would.",
    holds={
        "the two share more than random subspaces do": found[0] < chance[0]
        and median(found) < median(chance)
    },
)

# %% [markdown]
# ### All pairs, and another base · in depth
#
# That was one pair. In one number, the **overlap** of two subspaces is the mean of the squared cosines, $\lVert
# U_1^\top U_2 \rVert^2 / k$: how much of the one lies inside the other, $k / \text{out}$ by chance. For all pairs; and,
# as a control, for one task that was fine-tuned in the same way from **another base** (the stranger of lesson 02):

# %%
from apgd_teach.figures import measure_overlaps

NOISY = "digits-noisy"
stranger = pool_of(regime="mild", seed=SEED + 1, tasks=[NOISY])
overlaps = measure_overlaps(
    vectors,
    {name: task.family for name, task in tasks.items()},
    rank=r // T,
    elsewhere={NOISY: layer_vectors(stranger.base, stranger.experts)[LAYER][0]},
    seed=SEED,
)
overlaps.table()

# %%
say(
    f"{overlaps.above} of the {len(overlaps.across)} pairs of two families overlap more than any random pair. One task "
    f"from two bases has {100 * overlaps.elsewhere[0]:.1f} %, near the {100 * overlaps.chance:.1f} % of chance: what "
    "is shared is not in the task alone. It needs a common base, perhaps because another base numbers its output units "
    "in another way.",
    holds={
        "pairs of one base overlap more than random pairs": min(overlaps.within + overlaps.across)
        > max(overlaps.random),
        "pairs of one base overlap more than one task from two": min(
            overlaps.within + overlaps.across
        )
        > overlaps.elsewhere[0],
    },
)

# %% [markdown]
# ## What many of them share
#
# Of each of the $T$ tasks, take the first `r // T` left singular vectors, so that all together are at most $r$, and put
# them side by side, as the paper does (this $C$ has nothing to do with the covariances of lesson 04):
#
# $$C = [\, U_1 \; U_2 \; \cdots \; U_T \,], \qquad C C^\top = \sum_i U_i U_i^\top = \sum_i P_i .$$
#
# How much of a direction $u$ of length one is in the subspaces?
#
# $$u^\top C C^\top u = \sum_i u^\top P_i u = \sum_i \lVert P_i u \rVert^2 .$$
#
# Each task adds a number between 0 (it does not write there) and 1 (it does): the sum is a **soft count of the tasks
# that write into $u$**, to be read beside that of random subspaces. A second SVD finds the directions for which it is
# largest: the left singular vectors of $C$ are the eigenvectors of $C C^\top$, and the squared singular values are the
# counts.

# %%
problem("05.2")

# %% tags=["exercise"]
import torch


def shared_basis(task_vectors, per_task, keep):
    # your code: begin
    firsts = [torch.linalg.svd(tau, full_matrices=False).U[:, :per_task] for tau in task_vectors]
    return torch.linalg.svd(torch.cat(firsts, dim=1), full_matrices=False).U[:, :keep]
    # your code: end


problem("05.2").check(shared_basis)

# %% [markdown] tags=["solution"]
# The second SVD makes the columns orthonormal, and sorts them by how many tasks they belong to. A QR decomposition
# would do only the first.

# %%
shared_basis = problem("05.2").use(shared_basis)

# %% [markdown]
# On the real layer, with the paper's $k$ = `r // 6`. The library's subspace has to be the same:

# %%
from apgd_teach import merging

k = r // 6
U = shared_basis(tau, r // T, k)
assert merging.principal_angles(U, merging.shared_basis(tau, k)).max() < 1  # degrees

# %% [markdown]
# The counts of all directions, beside those of *random* subspaces. On which side of `r // 6` does the tasks' line meet
# the random one? (It must meet it somewhere: both add up to $T$ times `r // T`. The words below the picture say where,
# and so does the table of its numbers.) Where it is before, the last directions that the paper protects are counted
# less often than a random construction counts its own.

# %%
from apgd_teach.figures import Slider, draw_sharing, measure_sharing, panel

sharing = {layer: measure_sharing(one, seed=SEED) for layer, one in taus["mild"].items()}

panel(
    lambda layer: draw_sharing(sharing, layer=layer),
    title="How many tasks write into a direction",
    static=[{"layer": LAYER}, {"layer": "conv3.weight"}],
    layer=Slider("layer", list(sharing), start=LAYER),
)

# %% [markdown]
# ## How much of the updates is in it? · in depth
#
# A subspace of $k$ directions that was *built from* the task vectors holds more of them than $k / \text{out}$, whatever
# they are. So beside chance there are two controls, built in the same way: from the same numbers, shuffled inside every
# $\tau_i$ as in lesson 01; and from the $\tau_i$ with their outputs *turned*, each by a rotation of its own, which keep
# the few strong directions of each task and share them by chance only.

# %%
from apgd_teach.figures import measure_held

held = measure_held(taus["mild"], seed=SEED)
held.table()

# %%
(each, _, common), (each_by_chance, _, common_by_chance) = held.real[LAYER], held.turned[LAYER]
say(
    f"In `{LAYER}` the {k} shared directions are {100 * k / out:.1f} % of all and hold {100 * each:.0f} % of a task "
    f"vector on average, and {100 * common:.0f} % of the mean of all. Built in the same way from the turned task "
    f"vectors, a subspace holds {100 * each_by_chance:.0f} % and {100 * common_by_chance:.0f} %; from shuffled numbers "
    f"{100 * held.shuffled[LAYER][0]:.0f} % and {100 * held.shuffled[LAYER][2]:.0f} %.",
    holds={
        "the shared subspace holds more of every task vector than a shuffled one of its own": all(
            real[1] > max(held.shuffled[layer][0], 1 / 6) for layer, real in held.real.items()
        ),
        "it holds more of the mean than one of turned task vectors": common > common_by_chance,
    },
    facts={"05.inside_mean": 100 * common, "05.inside_chance": 100 * k / out},
)

# %% [markdown]
# ## Into the subspace, or onto its complement?
#
# A merge starts at $S = \sum_i \lambda_i \tau_i$, from here on with the task-aware $\lambda_i$ of lesson 03 at $c =
# 1/T$, about the average, and goes down the slope of a surrogate: $M \leftarrow M - \alpha \, \Pi \nabla$, with the
# gradient $\nabla$ (out, in), a step $\alpha$, and some projection $\Pi$ on the left. What is shared is to stay as it
# is in $S$:
#
# $$P (M - S) = 0 .$$
#
# The abstract of the paper says that gradients are projected *within* the shared subspace; its method section and
# public code project onto the orthogonal *complement*. That is the opposite:
#
# * into, $\Pi = P$: $(I - P) M$ stays as it is and $P M$ becomes $P M - \alpha P \nabla$. Only what is shared moves.
# * onto the complement, $\Pi = I - P$: $P M$ becomes $P M - \alpha P (I - P) \nabla = P M$. What is shared stays.
#
# That is a wall. A **soft** protection holds only a share $h_k$ of each direction $u_k$. Of what, matters then: taken
# off every gradient, it only slows a descent that arrives all the same; taken off the whole way $D = M - S$ that a free
# descent goes, it leaves that share of it ungone. Hence off the way:
#
# $$M = S + D - U \operatorname{diag}(h)\, U^\top D ,$$
#
# the wall where all $h_k = 1$ (for which, with the surrogate `full`, gradient and way come to the same: below, in
# depth), no protection where all are 0. $\sum_k h_k$ counts how many directions are held.

# %%
problem("05.3")


# %% tags=["exercise"]
def off_the_shared(matrix, basis, hold):
    # your code: begin
    return matrix - basis @ (hold[:, None] * (basis.T @ matrix))
    # your code: end


problem("05.3").check(off_the_shared)

# %% [markdown] tags=["solution"]
# $U^\top X$ has a row for each direction, and each row is scaled by its share. The brackets are for speed: $U^\top X$
# is small.

# %%
off_the_shared = problem("05.3").use(off_the_shared)


def walled(matrix, basis):
    """(I − P) X: every direction of the basis is held whole."""
    return off_the_shared(matrix, basis, torch.ones(basis.shape[1]))


# %% [markdown]
# ### Both readings, and neither
#
# With the surrogate `full` (lesson 04; from here on each task's $\lVert R_j\rVert^2$ is divided by
# $\lVert\tau_j\rVert^2$, so that no long task vector decides alone), projecting every gradient equals descending freely
# and projecting the whole way $D = M - S$ once (in depth below). So every layer is solved once, unprotected, and a
# function of $D$ and $U$ decides which part of $D$ is taken.
#
# > **Predict before you run.** Which of the three leaves the least of the surrogate? And which network will be the most
# > accurate, on mild and on hot experts?

# %%
from apgd_teach.evaluate import compare
from apgd_teach.figures import measure_moved, measure_way

FREE, ONTO, INTO = "nothing protected", "onto the complement", "into the subspace"
READINGS = {
    FREE: lambda D, U: D,
    ONTO: walled,
    INTO: lambda D, U: D - walled(D, U),
}
ways = {name: measure_way(pool.base, pool.experts) for name, pool in pools.items()}
merged, results = {}, {}
for name, pool in pools.items():
    merged[name] = {label: ways[name].merged(keep) for label, keep in READINGS.items()}
    results[name] = compare(pool, merged[name], images=profile.test_images)
moved = measure_moved(ways, merged, results)
moved.table()

# %% [markdown]
# The constraint decides: only onto the complement is the first number zero, and into the subspace moves nothing else.
# Whether the network is better is another question, and the columns on the right answer it for this choice of $P$. (A
# way of many times ‖τ‖ is no short step: the estimate behind it was made for short ones, lesson 04.)

# %% [markdown]
# ### One projection is enough · in depth
#
# The surrogate of granularity `full` is, halved, $\frac12 \sum_j \lVert (M - \tau_j) \tau_j^\top \rVert^2 / \lVert
# \tau_j \rVert^2$. Its gradient in $M$ is
#
# $$\nabla = \sum_j \frac{(M - \tau_j) \tau_j^\top \tau_j}{\lVert \tau_j \rVert^2} = M G - B, \qquad G = \sum_j
# \frac{\tau_j^\top \tau_j}{\lVert \tau_j \rVert^2}, \qquad B = \sum_j \frac{\tau_j \tau_j^\top \tau_j}{\lVert \tau_j
# \rVert^2} .$$
#
# Everything that happens to $M$ here happens on its *right*; a projector acts on the *left*. Write $D = M - S$ for the
# way gone so far, and $F = (I - P) D$ for its part outside the shared subspace. One free step takes $D$ to $D - \alpha
# (D G + S G - B)$. What does it do to $F$? Multiply by $(I - P)$ from the left, and use $(I - P) D G = F G = (I - P) F
# G$:
#
# $$(I - P) \left( D - \alpha (D G + S G - B) \right) = F - \alpha \, (I - P) \left( (S + F) G - B \right) .$$
#
# On the right stands a projected step from $S + F$. So projecting *every gradient* equals descending freely and then
# projecting the *whole way* once. (For `row`, the paper's granularity, this does not hold; lesson 06 walks step
# by step.) Forty steps by hand, on a layer small enough for it:

# %%
small, shared = taus["mild"]["conv2.weight"], ways["mild"].shared["conv2.weight"]
S, weight = small.mean(dim=0), 1 / small.square().sum(dim=(1, 2))
G = torch.einsum("t,toi,toj->ij", weight, small, small)
B = torch.einsum("t,toi->oi", weight, small @ small.mT @ small)
rate = 1 / torch.linalg.eigvalsh(G).max()
freely, projected = S.clone(), S.clone()
for _ in range(40):
    freely = freely - rate * (freely @ G - B)
    projected = projected - rate * walled(projected @ G - B, shared)

torch.testing.assert_close(projected - S, walled(freely - S, shared), atol=1e-6, rtol=1e-3)
"every gradient projected = the whole way projected once"

# %% [markdown]
# ### What the public code does · in depth
#
# Does it do what the text says? The library has it to the letter (`ApgdPublished`). It minimises `row` with Adam, an
# optimiser that divides every entry of the projected gradient by its own recent size. On one layer:

# %%
code = merging.ApgdPublished()
small, basis = taus["mild"]["conv2.weight"], ways["mild"].shared["conv2.weight"]
delta = code.delta(small, code.eta / small.norm(dim=(1, 2)), basis)
share, chance = inside(delta, basis), 100 * basis.shape[1] / basis.shape[0]
say(
    f"Of the modification $\\Delta$ that the code finds for `conv2.weight`, {share:.2f} % of $\\lVert \\Delta "
    f"\\rVert^2$ lies inside the shared subspace. Chance would put {chance:.1f} % there, and a projection into it "
    "everything. So the code, too, goes onto the complement."
    + (
        " Not exactly: Adam's division comes after the projection and carries some of it back in. Lesson 06 watches "
        "that leak, as a share of ‖PS‖: a short thing, beside which the same leak looks large."
        if share > 1e-4
        else ""
    ),
    holds={"the public code's Δ keeps to the complement": share < chance / 2},
)

# %% [markdown]
# ## Is what is shared the same? · in depth
#
# How much an update $M$ *keeps* of task $j$ inside the subspace is
#
# $$\frac{\langle P M, P \tau_j \rangle}{\lVert P \tau_j \rVert^2},$$
#
# 1 where $M$ does all that $\tau_j$ does there. For the average of $T$ updates that write into the same direction $u$
# and read inputs at right angles, $\tau_j = s \, u v_j^\top$ with $v_i^\top v_j = 0$, it is $1/T$: the direction is
# shared as much as can be, and the updates are not shared at all.
#
# > **Predict before you run.** How much does $S$ keep of the tasks inside the shared subspace: nearly all, or nearly
# > $1/T$?

# %%
from apgd_teach.figures import measure_kept

kept = measure_kept(ways)
kept.table()

# %%
say(
    f"Inside the shared subspace $S$ keeps {kept.range(0)} of a task's update, outside {kept.range(1)}, with $1/T$ at "
    f"{100 / T:.1f} %. So the tasks do agree more inside than outside. But they share output *directions*, and only in "
    f"part the *updates*: the solution with nothing protected would give a task {kept.range(2)} of what its expert "
    "does there.",
    holds={
        "tasks agree more inside the shared subspace than outside": all(
            inner > outer for inner, outer, *_ in kept.by.values()
        ),
        "S keeps less inside than the solved M": all(
            inner < reached for inner, _, reached, _ in kept.by.values()
        ),
    },
)

# %% [markdown]
# ## What protection costs
#
# To share a direction is not to share what is done along it. Two tasks may write into the same $u$ and read different
# inputs, $\tau_1 = s \, u v_1^\top$, $\tau_2 = s \, u v_2^\top$, $v_1^\top v_2 = 0$: their mean has half of each, and a
# merge that may not move along $u$ leaves both at half. What is protected is **frozen** at what $S$ has there: a wrong
# estimate cannot spoil it, and a right one cannot improve it.
#
# How many directions? The paper says `r // 6`. `protect="auto"` is the soft protection of your function: it holds every
# output direction by a share $h_k$ between 0 and 1, the more strongly, the more of the tasks' squared length
# $\lVert\tau_j\rVert^2$ lies in it, and takes no data (how: below, in depth). To choose by *accuracy* takes labelled
# images: validation images; test images only report.
#
# > **Predict before you run.** Protecting nothing is one end, all directions ($M = S$, about the average) the other. Is
# > the best share in between, and the same for mild and hot experts?

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import draw_rank

SHARES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 6, 1 / 2, 1)
sweeps = {}
for name, pool in pools.items():
    judge = Evaluator(pool, images=profile.sweep_images, split="validation")
    sweeps[name] = ways[name].sweep(judge, SHARES)

percent = {round(100 * share, 1): share for share in SHARES}
panel(
    lambda experts, share: draw_rank(sweeps[experts], share=percent[share]),
    title="Accuracy on validation images by the share that is protected",
    static=[{"experts": "mild", "share": 16.7}, {"experts": "hot", "share": 16.7}],
    experts=Slider("experts", list(sweeps)),
    share=Slider("share of r protected", list(percent), start=16.7, unit=" %"),
)

# %% [markdown]
# ### The choices beside two controls · in depth
#
# On test images (*onto the complement* protects `r // 6`), with two controls: whether the shared subspace is special
# (*random*), and whether automatic protection is more than going less far (*all alike*).

# %%
from apgd_teach.figures import choices_table, measure_choices

scored = {0: FREE, 1 / 6: ONTO}  # networks that are known already
for name, pool in pools.items():
    tests = Evaluator(pool, images=profile.test_images)
    results[name] = measure_choices(results[name], ways[name], sweeps[name], tests, scored=scored)
choices_table(results, FREE)

# %% [markdown]
# ### What is frozen, and what the automatic choice holds · in depth
#
# What is frozen can be said before anything is solved, from the weights alone. $P$ splits every residual $R_j = (M -
# \tau_j) \tau_j^\top$ into two parts at a right angle, so the surrogate is a sum:
#
# $$\sum_j \frac{\lVert R_j \rVert^2}{\lVert \tau_j \rVert^2} = \sum_j \frac{\lVert P R_j \rVert^2}{\lVert \tau_j
# \rVert^2} + \sum_j \frac{\lVert (I - P) R_j \rVert^2}{\lVert \tau_j \rVert^2} .$$
#
# With $P M = P S$ the first sum stays at its value in $S$: no descent, however long, gets below it.
#
# The automatic choice asks every eigenvector $u$ of $E = \sum_j \tau_j \tau_j^\top / \lVert \tau_j \rVert^2$ for its
# share $e / \operatorname{tr} E$ of all energy, $e = u^\top E u$, and takes from the way that the merge goes along it
# the part
#
# $$\frac{e}{e + \kappa \operatorname{tr} E} :$$
#
# half of it where that share is $\kappa = 1/16$, next to nothing where one task writes a little. $\kappa$ was chosen by
# this project, on validation images of pools made in this way: `benchmarks/protection.md` has others, with the settings
# in which it loses.

# %%
from apgd_teach.figures import measure_prices

prices = measure_prices(ways, sweeps)
prices.table()

# %% [markdown]
# ## How stable is it? · in depth
#
# What is to be protected had better not depend on chance. Try four changes: noise on every task vector; a task left
# out; the hot experts in place of the mild ones (same base, same data); and, as a control, shuffled numbers. And two
# ways to build the basis. The *published* one counts each of a task's first `r // T` directions as one, a long one like
# a short one. The *weighted* one takes each direction as long as its singular value in units of $\lVert \tau_i \rVert$;
# then $C C^\top$ counts energy, and is nearly the $E$ of the automatic protection.
#
# > **Predict before you run.** The singular values of a task vector fall steeply (lesson 01). Which basis changes more
# > when noise is added to the task vectors?

# %%
from apgd_teach.figures import measure_firmness

others = {"hot experts in place of mild ones": taus["hot"][LAYER]}
firmness = measure_firmness(tau, others, seed=SEED)
firmness.table()

# %%
BASES = merging.subspace.BASES
between = merging.principal_angles(*(merging.shared_basis(tau, k, basis=one) for one in BASES))
accuracy = {}
for name, pool in pools.items():
    judge = Evaluator(pool, images=profile.sweep_images, split="validation")
    weighted = {
        layer: merging.shared_basis(one, min(one.shape[1:]) // 6, basis="weighted")
        for layer, one in taus[name].items()
    }
    scores = judge.scores(ways[name].merged(READINGS[ONTO], weighted).state_dict)
    accuracy[name] = sum(one.accuracy for one in scores.values()) / T

say(
    "What stays more: "
    + "; ".join(
        f"the {basis} basis under {', '.join(firmness.firmer(basis))}"
        for basis in BASES
        if firmness.firmer(basis)
    )
    + " (the shuffle apart). A direction of a small singular value is easily turned by noise, and the published basis "
    f"counts it like any other.\n\nThe two are not the same subspace: {int((between < 30).sum())} of the {k} principal "
    f"angles between them are below 30° and {int((between > 60).sum())} above 60°. With `r // 6` protected, the mean "
    "accuracy on validation images is "
    + "; ".join(
        f"{sweeps[name].shares[1 / 6].mean:.1f} % with the published and {accuracy[name]:.1f} % with the weighted "
        f"basis ({name} experts)"
        for name in pools
    )
    + ".",
    holds={
        "with a little noise a basis stays more than after a shuffle": all(
            firmness.stays["noise of 10 % of ‖τ‖"][basis]
            > firmness.stays["every τ shuffled"][basis]
            for basis in BASES
        ),
        "more noise leaves less": all(
            firmness.stays["noise of 10 % of ‖τ‖"][basis]
            > firmness.stays["noise of 100 % of ‖τ‖"][basis]
            for basis in BASES
        ),
    },
)

# %% [markdown]
# ## What this run showed

# %%
DOES = {"better": "pays", "worse": "costs accuracy", "no difference seen": "shows no difference"}


def does(name, label, other):
    """What one choice does against another, in words."""
    difference = results[name].against(label, other)
    return f"{DOES[difference.verdict]} ({difference})"


say(
    f"**What the tasks share can be computed.** In `{LAYER}`, {k} of {out} output directions hold "
    f"{inside(tau.mean(dim=0), U):.0f} % of the mean task vector; built in the same way from the same task vectors, "
    f"each turned by itself, as many hold {100 * common_by_chance:.0f} %. **It can be protected**, by projecting onto "
    "the complement.\n\n"
    "**Whether it should be, the subspace alone cannot say.** (*Shows no difference*: none that this run can see.)\n\n"
    + "\n".join(
        f"* On the {name} experts, of the fixed shares, {sweeps[name].told()}, on validation images. On test "
        f"images, protecting `r // 6` {does(name, ONTO, FREE)} against nothing protected (the worst task goes from "
        f"{results[name].worst(FREE)[1]:.1f} to {results[name].worst(ONTO)[1]:.1f} %), and "
        f"{does(name, ONTO, 'random')} against random directions. Automatic protection, whose shares $h_k$ add up to "
        f"{100 * sweeps[name].auto_share:.0f} % of r, {does(name, 'automatic', FREE)} against nothing, and "
        f"{does(name, 'automatic', 'all alike')} against all alike. Against the base, which is not to merge at all, "
        f"automatic protection {does(name, 'automatic', 'base')}."
        for name in results
    ),
    holds={
        "onto the complement leaves what is shared": max(m.shared for m in moved.of(ONTO)) < 1e-3,
        "into the subspace moves nothing else": max(m.rest for m in moved.of(INTO)) < 1e-3,
    },
)

# %% [markdown]
# The intervals are over test images, of one training seed; lesson 07 varies it.
#
# **In practice.** With a few hundred labelled images, let them choose between nothing, some shares and `"auto"`. With
# none, go by what held on many pools (`benchmarks/protection.md`), not by `r // 6` because a recipe says so: the
# constraint keeps the shared part of $S$, good or not.
#
# ## Recap
#
# * What tasks share is looked for where their updates write: in the left singular vectors.
# * Put the tasks' first directions side by side: a second SVD finds those into which most tasks write, orthonormal, so
#   that $P = U U^\top$ is a projector.
# * The constraint is $P (M - S) = 0$; a gradient keeps it if it is projected onto the complement, $(I - P) \nabla$.
# * What is protected is frozen, at what $S$ has there.

# %% [markdown]
# ## Try it · in depth
#
# 1. Experts made by AdamW: `pool_of(regime="hot", optimizer="adamw")`, `measure_way` of its base and experts, and the
#    sweep over shares. Eight experts have to be trained. Is the best share the same? (AdamW gives every entry of the
#    gradient its own scale, so that $-\tau$ stands for the gradient less well, and the surrogate with it.)
# 2. Hold half of every shared direction: `ways["hot"].merged(lambda D, U: off_the_shared(D, U,
#    torch.full((U.shape[1],), 0.5)))`. Compare it on validation images with the wall and with nothing.
# 3. Build the basis on the *input* side, from $V$, and project on the right: $\nabla (I - V V^\top)$. Which tasks share
#    inputs? Before you run it: is the overlap of two tasks of one family larger or smaller than on the output side?
# 4. Move the softness: `measure_rank(…, softness=…)` for $\kappa$ from 1/256 to 1. At which end does it become
#    "nothing protected", and at which $S$?
#
# **Next:** [06 · Projected gradient descent](06_projected_descent.ipynb).
#
# *References.* The shared subspace, the constraint and the projection: Wei et al., "Modeling Multi-Task Model Merging
# as Adaptive Projective Gradient Descent", ICML 2025, [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). The
# surrogate `full`: Cheng et al., "Whoever Started the Interference Should End It", ICML 2025,
# [arXiv 2503.08099](https://arxiv.org/abs/2503.08099). Principal angles: Björck and Golub, "Numerical Methods for
# Computing Angles Between Linear Subspaces", Mathematics of Computation, 1973. Soft protection is this project's own
# (`soft_projector`); `protect` and its rules are described in docs/merging.md under "Methods".
