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
from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)


def pool_of(regime, seed=SEED, tasks=None):
    """Base and experts in this profile's size, from the cache where they are there."""
    return make_pool(
        regime=regime,
        seed=seed,
        tasks=tasks,
        base_steps=profile.base_steps,
        expert_steps=profile.expert_steps,
        source=source,
    )


pools = {"mild": pool_of("mild"), "hot": pool_of("hot")}
titles = {name: task.title for name, task in pools["mild"].tasks.items()}

# %% tags=["machine"]
header("05")

# %% [markdown]
# ## What an update reads, and what it writes
#
# Lesson 04 ended with a number per layer that a merge can make small without any data. Before lesson 06 goes down that
# slope, one thing has to be settled: what must **not** move on the way. The argument of the method is this. What all
# experts changed in the same way, their sum has already; a descent that follows an estimate can only spoil it. So find
# what the tasks share, and protect it. This lesson computes it, protects it, and then holds the argument against a
# measurement.
#
# A linear layer turns its input $x$ into $\theta_0 x$. An expert adds $\tau x$, and the singular value decomposition
# $\tau = U S V^\top$ says what that is, term by term:
#
# $$\tau x = \sum_k s_k \, (v_k^\top x) \, u_k .$$
#
# Read it from the right. $v_k^\top x$ asks how much of the direction $v_k$ there is in the *input*; $s_k$ is how
# strongly the layer answers; and $u_k$ is the direction of the *output* into which the answer is written. Columns of
# $V$ are read, columns of $U$ are written. $\tau$ has shape (out, in), so $u_k$ has out numbers and $v_k$ has in
# numbers; there are $r = \min(\text{out}, \text{in})$ of each.
#
# Two tasks show a layer different inputs. But what they write goes to the same place: the output units, which the next
# layer, or the heads, will read. So it is on the output side, in the $u_k$, that we look for what tasks share.

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
# Stuck? `problem("05.1").hint(1)`, then `hint(2)`; `problem("05.1").solution()` shows an answer. The same goes for
# every exercise.

# %% [markdown] tags=["solution"]
# PyTorch gives $V$ already transposed, as `Vh`, with one direction per *row*. Taking `Vh` for $U$ is the usual mistake,
# and on a square layer no shape would tell you.

# %%
output_basis = problem("05.1").use(output_basis)

# %% [markdown]
# From here on it works on real task vectors, one tensor (task, out, in) per layer. A kernel of shape (out, in, height,
# width) is the matrix (out, in · height · width), as in lesson 01.

# %%
from apgd_teach.merging import task_vectors

names = sorted(titles)  # the order in which a merge takes them


def stacked(pool):
    """By layer, the task vectors of all tasks: (task, out, in)."""
    vectors = task_vectors(pool.base, pool.experts)
    return {
        key: torch.stack([vectors[one][key].flatten(1) for one in sorted(vectors)])
        for key, tensor in pool.base.items()
        if tensor.ndim > 1
    }


taus = {name: stacked(pool) for name, pool in pools.items()}
LAYER = "linear.weight"  # the encoder's last layer
tau = taus["mild"][LAYER]
T, out, columns = tau.shape
r = min(out, columns)
bases = {name: output_basis(one, r // T) for name, one in zip(names, tau, strict=True)}
f"{LAYER}: {T} task vectors ({out}, {columns}); of each the first r // T = {r // T} output directions"

# %% [markdown]
# ## The projector
#
# Let $U$ (out, $k$) hold $k$ orthonormal columns, $U^\top U = I$. For any matrix $X$ with out rows,
#
# $$P = U U^\top, \qquad P X = U (U^\top X).$$
#
# $U^\top X$ are the coordinates of $X$ in the subspace, and $U$ turns coordinates back into outputs. Three facts, each
# one line, carry everything below:
#
# * $P P = U (U^\top U) U^\top = U U^\top = P$: what is in the subspace stays as it is;
# * $P^\top = P$, so $\langle P X, (I - P) X \rangle = \langle X, (P - P P) X \rangle = 0$: the part inside and the part
#   outside are at a right angle, and $\lVert X \rVert^2 = \lVert P X \rVert^2 + \lVert (I - P) X \rVert^2$;
# * $\operatorname{tr} P = k$: of an $X$ that has nothing to do with $U$, the share $\lVert P X \rVert^2 / \lVert X
#   \rVert^2$ is $k / \text{out}$ on average. That is the **chance share**, to which every share below is compared.

# %%
U = bases["digits-upright"]
P, one = U @ U.T, torch.eye(out)
noise = torch.randn(tau.shape[1:], generator=torch.Generator().manual_seed(SEED))


def inside(matrix, basis):
    """The share of a matrix (out, in) that lies in the subspace of a basis (out, k)."""
    return float((basis.T @ matrix).square().sum() / matrix.square().sum())


torch.testing.assert_close(P @ P, P, atol=1e-5, rtol=0)
torch.testing.assert_close(P, P.T)
torch.testing.assert_close(
    noise.square().sum(), (P @ noise).square().sum() + ((one - P) @ noise).square().sum()
)
say(
    f"All three hold up to rounding; tr P is {float(P.trace()):.2f} with k = {U.shape[1]}. Of a random matrix "
    f"{100 * inside(noise, U):.1f} % lies in the subspace, and chance says k/out = {100 * U.shape[1] / out:.1f} %. Of "
    f"the task vector that the subspace comes from, it is "
    f"{100 * inside(tau[names.index('digits-upright')], U):.1f} %.",
    holds={"the trace of a projector is its rank": abs(float(P.trace()) - U.shape[1]) < 1e-3},
)

# %% [markdown]
# ## Do two tasks write into the same directions?
#
# Two subspaces have as many angles between them as they have directions, the **principal angles**. With orthonormal
# $U_1$ and $U_2$ (out, $k$) their cosines are the singular values of $U_1^\top U_2$: $0°$ for a direction that both
# have, $90°$ for one that is at a right angle to all of the other. In one number, the **overlap** is the mean of the
# squared cosines, $\lVert U_1^\top U_2 \rVert^2 / k$: how much of the one lies inside the other. Chance, again, is
# $k / \text{out}$.
#
# > **Predict before you run.** Digits and clothes: two experts that never saw the same picture, fine-tuned from one
# > base. Do they write into the same output directions more than two random subspaces would?

# %%
from apgd_teach.figures import draw_angles, measure_angles, show

A, B = "digits-upright", "fashion-upright"
angles = measure_angles(
    tau[names.index(A)],
    tau[names.index(B)],
    (titles[A], titles[B]),
    ranks=(1, 2, 4, 8, 16, 32, r // T, 64, 96),
)
show(draw_angles(angles, rank=r // T))

# %% [markdown]
# That was one pair. All pairs, and a control: the same task, fine-tuned in the same way from **another base** (the
# stranger of lesson 02).

# %%
from apgd_teach.tables import Table


def overlap(first, second):
    """The mean squared cosine of the principal angles: how much of one subspace lies in the other."""
    return float((first.T @ second).square().sum() / min(first.shape[1], second.shape[1]))


tasks = pools["mild"].tasks
pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
within = [overlap(bases[a], bases[b]) for a, b in pairs if tasks[a].family == tasks[b].family]
across = [overlap(bases[a], bases[b]) for a, b in pairs if tasks[a].family != tasks[b].family]

NOISY = "digits-noisy"
stranger = pool_of("mild", seed=SEED + 1, tasks=[NOISY])
other_base = overlap(bases[NOISY], output_basis(stacked(stranger)[LAYER][0], r // T))
draws = torch.Generator().manual_seed(SEED)
random = torch.linalg.qr(torch.randn(len(pairs), 2, out, r // T, generator=draws)).Q
by_chance = [overlap(*two) for two in random]

Table(
    ("subspaces", "mean %", "least %", "most %"),
    [
        (name, 100 * sum(values) / len(values), 100 * min(values), 100 * max(values))
        for name, values in (
            ("two tasks of one family", within),
            ("two tasks of two families", across),
            (f"{titles[NOISY]}, from two bases", [other_base]),
            (f"{len(pairs)} random pairs", by_chance),
        )
    ],
    digits=1,
    caption=f"Overlap of {r // T} output directions in {LAYER}",
    note=f"k/out is {100 * (r // T) / out:.1f} %.",
)

# %%
above = sum(one > max(by_chance) for one in across)
say(
    f"Of the {len(across)} pairs of two families {above} overlap more than any random pair: {100 * min(across):.0f} to "
    f"{100 * max(across):.0f} %, random pairs {100 * sum(by_chance) / len(by_chance):.1f} %. Pairs of one family "
    f"have {100 * min(within):.0f} to {100 * max(within):.0f} %. One task from two bases has {100 * other_base:.1f} %: "
    "what is shared is not in the task alone. It needs a common base, because another base numbers its output units in "
    "another way.",
    holds={
        "pairs of one base overlap more than random pairs": min(within + across) > max(by_chance),
        "pairs of one base overlap more than one task from two": min(within + across) > other_base,
    },
)

# %% [markdown]
# ## What all of them share
#
# Now all $T$ tasks at once, in the way the paper does it. Of each task, take the first `r // T` left singular vectors,
# all of length one, and put them side by side:
#
# $$C = [\, U_1 \; U_2 \; \cdots \; U_T \,], \qquad C C^\top = \sum_i U_i U_i^\top = \sum_i P_i .$$
#
# Take any direction $u$ of length one and ask how much of it is in the subspaces:
#
# $$u^\top C C^\top u = \sum_i u^\top P_i u = \sum_i \lVert P_i u \rVert^2 .$$
#
# Each task adds a number between 0 (it does not write there) and 1 (it does). So the sum **counts the tasks that write
# into $u$**, from 0 to $T$. And the directions for which this count is largest are what a second SVD finds: the left
# singular vectors of $C$ are the eigenvectors of $C C^\top$, and the squared singular values are the counts.

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
# The second SVD does two things at once: it makes the columns orthonormal, and it sorts them by how many tasks they
# belong to. A QR decomposition would do the first and not the second.

# %%
shared_basis = problem("05.2").use(shared_basis)

# %% [markdown]
# Your function on the real layer, with the paper's numbers: `r // T` of each task, $k$ = `r // 6` kept. The library's
# own may find other columns; what must agree is the subspace, so the overlap of the two has to be 1.

# %%
from apgd_teach import merging

k = r // 6
U = shared_basis(tau, r // T, k)
theirs = merging.shared_basis(tau, k)
C = torch.cat(list(bases.values()), dim=1)

assert overlap(U, theirs) > 0.999


def again(basis, times):
    """How long the mean task vector is after so many projections, as a share of what it was."""
    X = tau.mean(dim=0)
    return float((torch.linalg.matrix_power(basis @ basis.T, times) @ X).norm() / X.norm())


Table(
    ("columns", "how many", "largest product", "projected once", "twice", "three times"),
    [
        (
            name,
            basis.shape[1],
            float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max()),
            *(again(basis, times) for times in (1, 2, 3)),
        )
        for name, basis in (
            ("the tasks' own, side by side (C)", C),
            ("after the second SVD (U)", U),
        )
    ],
    digits=2,
    caption="Only an orthonormal basis makes a projector",
    note="Largest product: of two different columns. Projected: the length of the mean task vector, in units of what "
    "it was before. A projector shortens it once, and then leaves it alone.",
)

# %% [markdown]
# Side by side, the columns of different tasks lean on each other, *because* the tasks share something, and
# $C C^\top$ is no projector: it stretches what many tasks have. After the second SVD all products are zero up to
# rounding, and projecting twice is projecting once.
#
# The counts themselves are worth a look, beside those of as many *random* subspaces.

# %%
from apgd_teach.figures import Slider, draw_sharing, measure_sharing, panel

sharing = {layer: measure_sharing(one, seed=SEED) for layer, one in taus["mild"].items()}


def draw_counts(layer):
    """Looks up: nothing is decomposed while you choose."""
    return draw_sharing(sharing, layer=layer)


panel(
    draw_counts,
    title="How many tasks write into a direction",
    static=[{"layer": LAYER}, {"layer": "conv3.weight"}],
    layer=Slider("layer", list(sharing), start=LAYER),
)

# %% [markdown]
# Where the tasks' line lies above the dashed one, directions belong to more tasks than chance explains. `r // 6` is the
# paper's choice of how many to call shared; nothing in the curve has to end there. Ask of each layer on which side of
# `r // 6` the two lines cross, and how many tasks the last protected direction still belongs to.

# %% [markdown]
# ## How much of the updates is in it? · in depth
#
# A subspace of $k$ directions that was *built from* the task vectors holds more of them than $k / \text{out}$, whatever
# they are. So beside chance there is a second control: the same construction from the same numbers, shuffled inside
# every $\tau_i$ as in lesson 01.


# %%
def shuffled(task_vectors, seed=SEED):
    """Every τ with its entries in another order."""
    generator = torch.Generator().manual_seed(seed)
    flat = task_vectors.flatten(1)
    order = torch.stack([torch.randperm(flat.shape[1], generator=generator) for _ in flat])
    return flat.gather(1, order).view_as(task_vectors)


def shared_of(task_vectors, basis="published"):
    """The library's basis with the paper's k = r // 6."""
    return merging.shared_basis(task_vectors, min(task_vectors.shape[1:]) // 6, basis=basis)


def held(task_vectors):
    """Of the task vectors, and of their mean, the share in the subspace that they share, in per cent."""
    basis = shared_of(task_vectors)
    each = [100 * inside(vector, basis) for vector in task_vectors]
    return sum(each) / T, min(each), 100 * inside(task_vectors.mean(dim=0), basis)


shares = {layer: (held(one), held(shuffled(one))) for layer, one in taus["mild"].items()}
Table(
    (
        "layer",
        "k",
        "chance",
        "τᵢ, mean over tasks",
        "τᵢ, least",
        "mean τ",
        "shuffled: τᵢ, mean",
        "shuffled: least",
        "shuffled: mean τ",
    ),
    [
        (layer, r6, 100 * r6 / one.shape[1], *shares[layer][0], *shares[layer][1])
        for layer, one in taus["mild"].items()
        for r6 in [min(one.shape[1:]) // 6]
    ],
    digits=1,
    caption="Share of ‖·‖² inside the shared subspace, mild experts (%)",
)

# %%
(each, least, common), (each_by_chance, _, common_by_chance) = shares[LAYER]
say(
    f"In `{LAYER}` the {k} shared directions are {100 * k / out:.1f} % of all and hold {each:.0f} % of a task vector "
    f"on average, and {common:.0f} % of the mean of all. Built in the same way from shuffled numbers, a subspace holds "
    f"{each_by_chance:.0f} % and {common_by_chance:.0f} %.",
    holds={
        "the shared subspace holds more of every task vector than a shuffled one of its own": all(
            real[1] > max(control[0], 100 / 6) for real, control in shares.values()
        )
    },
    facts={"05.inside_mean": common, "05.inside_chance": 100 * k / out},
)

# %% [markdown]
# ## Into the subspace, or onto its complement?
#
# So much for computing it; now to protect it. A merge starts at $S = \sum_i \lambda_i \tau_i$ (lesson 03; here with
# $\lambda_i$ near $1/T$, corrected for the lengths of the task vectors) and goes down the slope of a surrogate (lesson
# 04): $M \leftarrow M - \alpha \, \Pi \nabla$, with the gradient $\nabla$ (out, in), a step $\alpha$, and some
# projection $\Pi$ on the left. What is shared is to stay as it is in $S$:
#
# $$P (M - S) = 0 .$$
#
# The abstract of the paper says that gradients are projected *within* the shared subspace. Its method section and its
# public code project them onto the orthogonal *complement*. That is the opposite, as one line each shows:
#
# * into, $\Pi = P$: then $(I - P) M$ stays as it is and $P M$ becomes $P M - \alpha P \nabla$. Only what is shared
#   moves.
# * onto the complement, $\Pi = I - P$: then $P M$ becomes $P M - \alpha P (I - P) \nabla = P M$. What is shared stays,
#   and all else may move.

# %%
problem("05.3")


# %% tags=["exercise"]
def off_the_shared(gradient, basis):
    # your code: begin
    return gradient - basis @ (basis.T @ gradient)
    # your code: end


problem("05.3").check(off_the_shared)

# %% [markdown] tags=["solution"]
# $(I - P) \nabla = \nabla - U (U^\top \nabla)$. The brackets matter for speed: $U^\top \nabla$ is small, $U U^\top$ is
# (out, out).

# %%
off_the_shared = problem("05.3").use(off_the_shared)

# %% [markdown]
# ### One projection is enough · in depth
#
# The surrogate of granularity `full` (lesson 04) is $\frac12 \sum_j \lVert (M - \tau_j) \tau_j^\top \rVert^2 / \lVert
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
# On the right stands a projected step from $S + F$. So to project *every gradient* comes to the same as to go down
# freely and project the *whole way* once. (For `row`, the paper's granularity, this does not hold; lesson 06 walks step
# by step.) Forty steps by hand, on a layer small enough for it:

# %%
small = taus["mild"]["conv2.weight"]
S, weight = small.mean(dim=0), 1 / small.square().sum(dim=(1, 2))
G = torch.einsum("t,toi,toj->ij", weight, small, small)
B = torch.einsum("t,toi->oi", weight, small @ small.mT @ small)
rate = 1 / torch.linalg.eigvalsh(G).max()
shared = shared_of(small)
freely, projected = S.clone(), S.clone()
for _ in range(40):
    freely = freely - rate * (freely @ G - B)
    projected = projected - rate * off_the_shared(projected @ G - B, shared)

torch.testing.assert_close(projected - S, off_the_shared(freely - S, shared), atol=1e-6, rtol=1e-3)
"every gradient projected = the whole way projected once"

# %% [markdown]
# ### Both readings, and neither
#
# So one solution with nothing protected gives all three networks. `Apgd` is the course's method; here it walks down
# `full` for a while (how long, and what its other settings are for, is lesson 06's). Of the way $D$ that it goes from
# $S$, take all, what is off the shared subspace, or what is inside. As a method of your own, which `merge` takes like
# any other:

# %%
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

solved = {
    name: {layer: merging.Apgd(power=2.0, flatten=0.0).solve(one) for layer, one in by.items()}
    for name, by in taus.items()
}


@dataclass(frozen=True)
class Projected:
    """Descent on `full` from S, of whose way D only a part is gone: keep(D, τ)."""

    experts: str
    keep: Callable
    name: ClassVar[str] = "projected"

    def __call__(self, task_vectors, layer):
        one = solved[self.experts][layer.name]
        return one.start + self.keep(one.update - one.start, task_vectors)


FREE, ONTO, INTO = "not projected", "onto the complement", "into the subspace"
READINGS = {
    FREE: lambda way, vectors: way,
    ONTO: lambda way, vectors: off_the_shared(way, shared_of(vectors)),
    INTO: lambda way, vectors: way - off_the_shared(way, shared_of(vectors)),
}


def merged_with(name, keep):
    """The experts of a pool merged by `Projected`."""
    return merging.merge(pools[name].base, pools[name].experts, Projected(name, keep))


merged = {
    name: {label: merged_with(name, keep) for label, keep in READINGS.items()} for name in pools
}

# %% [markdown]
# Three numbers for each: how far the shared part has moved, $\lVert P (M - S) \rVert / \lVert P S \rVert$, which the
# constraint wants to be 0; how far all else has, in the same way; and what is left of the surrogate, as a share of what
# it is at $S$. All layers together. (Do not be surprised by long ways: nothing in the surrogate keeps $M$ near $S$,
# whose vectors largely cancelled in the mean.)
#
# > **Predict before you run.** Which of the three leaves the least of the surrogate? And which network do you expect to
# > be the most accurate, on mild and on hot experts?


# %%
def parts(matrix, basis):
    """What of a matrix (out, in) lies inside the subspace, and what outside."""
    outside = off_the_shared(matrix, basis)
    return matrix - outside, outside


def updates(name, network):
    """M of every layer as a matrix (out, in)."""
    base = pools[name].base
    return {key: (network.state_dict[key] - base[key]).flatten(1) for key in taus[name]}


def left_of(task_vectors, update, basis=None):
    """The surrogate `full` of a layer; of its residuals only the part inside a subspace, if one is given."""
    total = 0.0
    for one in task_vectors:
        error = update - one if basis is None else basis.T @ (update - one)
        total += float((error @ one.T / one.norm()).square().sum()) / 2
    return total


shared = {name: {layer: shared_of(one) for layer, one in by.items()} for name, by in taus.items()}
at_start = {
    name: {layer: left_of(one, solved[name][layer].start) for layer, one in by.items()}
    for name, by in taus.items()
}


def measures(name, network):
    """How far the shared part and the rest moved from S, and what is left of the surrogate."""
    squares, left = torch.zeros(4), 0.0
    for layer, M in updates(name, network).items():
        S, U = solved[name][layer].start, shared[name][layer]
        squares += torch.stack([part.square().sum() for part in (*parts(M - S, U), *parts(S, U))])
        left += left_of(taus[name][layer], M)
    inner, outer = (squares[:2] / squares[2:]).sqrt().tolist()
    return inner, outer, left / sum(at_start[name].values())


numbers = {
    name: {label: measures(name, one) for label, one in by.items()} for name, by in merged.items()
}
Table(
    (
        "experts",
        "gradient",
        "shared part moved, × its length",
        "rest moved, × its length",
        "surrogate left %",
    ),
    [
        (name, label, inner, outer, 100 * left)
        for name, by in numbers.items()
        for label, (inner, outer, left) in by.items()
    ],
    digits=1,
    caption="What each reading moves",
    note="Length: that of this part in S. Left: of the surrogate's value at S.",
)

# %%
from apgd_teach.evaluate import compare

average = {
    name: merging.merge(pool.base, pool.experts, method="average") for name, pool in pools.items()
}
results = {
    name: compare(pool, {"average": average[name], **merged[name]}, images=profile.test_images)
    for name, pool in pools.items()
}
results["mild"].summary()

# %%
results["hot"].summary()

# %%
still = max(by[ONTO][0] for by in numbers.values())


def verdicts(name):
    """The readings on one set of experts, in words."""
    one = results[name]
    inner, free = one.against(ONTO, INTO), one.against(ONTO, FREE)
    return (
        f"{name.capitalize()} experts: onto the complement is {inner} points against into the subspace "
        f"({inner.verdict}), and {free} points against no projection ({free.verdict}). The worst task has "
        f"{one.worst(ONTO)[1]:.1f} % (onto), {one.worst(INTO)[1]:.1f} % (into) and {one.worst(FREE)[1]:.1f} % (not "
        "projected)."
    )


say(
    "**The constraint decides between the two.** With the gradient onto the complement the shared part has not moved, "
    "up to rounding. Into the subspace, it has moved by "
    + " and ".join(f"{by[INTO][0]:.1f} times ({name})" for name, by in numbers.items())
    + " its length, and everything else has stood still: the opposite of what the constraint asks for. "
    '"Within the shared subspace" cannot be meant literally; it is the complement, as in the paper\'s text and '
    "code.\n\n**Accuracy is another question.** " + " ".join(map(verdicts, numbers)),
    holds={
        "onto the complement leaves the shared part alone": still < 1e-3,
        "into the subspace leaves the rest alone": max(by[INTO][1] for by in numbers.values())
        < 1e-3,
        "into the subspace moves what is shared": min(by[INTO][0] for by in numbers.values())
        > 0.01,
        "no projection leaves least of the surrogate": all(
            by[FREE][2] < min(by[ONTO][2], by[INTO][2]) for by in numbers.values()
        ),
    },
    facts={
        f"05.{name}.{key}": results[name].average(label)
        for name in numbers
        for key, label in (("onto", ONTO), ("into", INTO), ("free", FREE))
    },
)

# %% [markdown]
# Does the public code do what the text says? The library has it to the letter (`apgd_published`). It minimises `row`
# with Adam, an optimiser that divides every entry of the projected gradient by its own recent size. On one layer:

# %%
code = merging.ApgdPublished()
vectors, U = taus["mild"]["conv3.weight"], shared["mild"]["conv3.weight"]
delta = code.delta(vectors, code.eta / vectors.norm(dim=(1, 2)), U)
share = inside(delta, U)
say(
    f"Of the modification $\\Delta$ that the code finds for `conv3.weight`, {100 * share:.2f} % of "
    "$\\lVert \\Delta \\rVert^2$ lies inside the shared subspace. Chance would put "
    f"{100 * U.shape[1] / U.shape[0]:.1f} % there, and a projection into it everything. So the code, too, goes onto "
    "the complement."
    + (
        " Not exactly: Adam's division comes after the projection and carries some of it back in. Lesson 06 watches "
        "that leak, as a share of ‖PS‖: a short thing, beside which the same leak looks large."
        if share > 1e-6
        else ""
    ),
    holds={"the public code's Δ keeps to the complement": share < U.shape[1] / U.shape[0] / 2},
)

# %% [markdown]
# ## Is what is shared the same? · in depth
#
# The argument for protecting was: what all experts changed in the same way, their sum has already. Look again at the
# first formula of this lesson. Two tasks may write into the same output direction $u$ and read **different** inputs:
#
# $$\tau_1 = s \, u v_1^\top, \quad \tau_2 = s \, u v_2^\top, \quad v_1^\top v_2 = 0 .$$
#
# Both lie in the subspace of $u$ entirely, it is shared as much as can be, and yet the two updates are at a right
# angle, $\langle \tau_1, \tau_2 \rangle = s^2 \, (v_1^\top v_2) = 0$. Their mean has half of each. In general, how much
# an update $M$ *keeps* of task $j$ inside the subspace is
#
# $$\frac{\langle P M, P \tau_j \rangle}{\lVert P \tau_j \rVert^2},$$
#
# 1 where $M$ does all that $\tau_j$ does there, and about $1/T$ for the average of $T$ updates at right angles.
#
# > **Predict before you run.** How much does $S$ keep of the tasks inside the shared subspace: nearly all, or nearly
# > $1/T$?


# %%
def kept(update, task_vectors, basis):
    """How much of the tasks an update keeps inside the subspace, and outside: per cent, mean over tasks."""
    shares = [0.0, 0.0]
    for one in task_vectors:
        for i, (mine, theirs) in enumerate(
            zip(parts(update, basis), parts(one, basis), strict=True)
        ):
            shares[i] += 100 / T * float((mine * theirs).sum() / theirs.square().sum())
    return shares


keeps = {
    (name, layer): [
        share
        for update in (solved[name][layer].start, solved[name][layer].update)
        for share in kept(update, vectors, shared[name][layer])
    ]
    for name, by in taus.items()
    for layer, vectors in by.items()
}
Table(
    ("experts", "layer", "S, inside", "S, outside", "solved M, inside", "solved M, outside"),
    [(*which, *values) for which, values in keeps.items()],
    digits=0,
    caption="How much is kept of the tasks' updates, inside and outside the shared subspace (%)",
    note=f"Mean over tasks. 1/T is {100 / T:.1f} %. Solved M: not projected.",
)

# %%
inner, outer, reached = ([values[i] for values in keeps.values()] for i in range(3))
say(
    f"Inside the shared subspace $S$ keeps {min(inner):.0f} to {max(inner):.0f} % of a task's update, outside "
    f"{min(outer):.0f} to {max(outer):.0f} %, with $1/T$ at {100 / T:.1f} %. So the tasks do agree more inside than "
    "outside. But they share output *directions*, and only in part the *updates*: what the constraint freezes is a sum "
    f"in which a task has {min(inner):.0f} to {max(inner):.0f} % of what its expert does there, and the solution that "
    f"is not projected would give it {min(reached):.0f} to {max(reached):.0f} %.",
    holds={
        "tasks agree more inside the shared subspace than outside": all(
            a > b for a, b in zip(inner, outer, strict=True)
        ),
        "S keeps less inside than the solved M": all(
            a < b for a, b in zip(inner, reached, strict=True)
        ),
    },
)

# %% [markdown]
# ## What is protected costs what
#
# What may not move cannot be improved. How much that is can be said before anything is solved, from the weights alone.
# $P$ splits every residual $R_j = (M - \tau_j) \tau_j^\top$ into two parts at a right angle, so the surrogate is a sum:
#
# $$\sum_j \frac{\lVert R_j \rVert^2}{\lVert \tau_j \rVert^2} = \sum_j \frac{\lVert P R_j \rVert^2}{\lVert \tau_j
# \rVert^2} + \sum_j \frac{\lVert (I - P) R_j \rVert^2}{\lVert \tau_j \rVert^2} .$$
#
# With $P M = P S$ the first sum is **frozen** at its value in $S$. That is the price of protection: no descent, however
# long, gets below it. It buys something where the surrogate is wrong, because in the frozen part the merge cannot
# follow a wrong estimate either; lesson 04 showed where the estimate breaks.
#
# So how many directions? The paper says `r // 6`. `protect="auto"` does not choose a number. It asks every direction of
# the outputs for its share $e / \operatorname{tr} E$ of all energy, $E = \sum_j \tau_j \tau_j^\top / \lVert \tau_j
# \rVert^2$, and takes from the way that the merge goes along it the part
#
# $$\frac{e}{e + \kappa \operatorname{tr} E} :$$
#
# half of it in a direction whose share is $\kappa = 1/16$, next to nothing where one task writes a little. The
# constraint has become a price instead of a wall.
#
# No data is needed for that. To choose a share by *accuracy* takes labelled images, and so it is done on validation
# images here; the test images only report.
#
# > **Predict before you run.** Protecting nothing is one end. Protecting all directions, $M = S$, is the other: about
# > the average. Is the best share in between? Is it the same one for mild and hot experts?

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import draw_rank, measure_rank

SHARES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 6, 1 / 2, 1)
judges = {
    name: Evaluator(pool, images=profile.sweep_images, split="validation")
    for name, pool in pools.items()
}
sweeps = {
    name: measure_rank(
        pool.base,
        pool.experts,
        judges[name],
        shares=SHARES,
        free=solved[name],
        power=2.0,
        flatten=0.0,
    )
    for name, pool in pools.items()
}


percent = {round(100 * share, 1): share for share in SHARES}


def draw_share(experts, share):
    """Looks up: nothing is merged or evaluated while you choose."""
    return draw_rank(sweeps[experts], share=percent[share])


panel(
    draw_share,
    title="Accuracy on validation images by the share that is protected",
    static=[{"experts": "mild", "share": 16.7}, {"experts": "hot", "share": 16.7}],
    experts=Slider("experts", list(sweeps)),
    share=Slider("share of r protected", list(percent), start=16.7, unit=" %"),
)

# %% [markdown]
# The network at $1/6$ comes from the library here. It is the one that your function made above:

# %%
for name, sweep in sweeps.items():
    for key, mine in merged[name][ONTO].state_dict.items():
        torch.testing.assert_close(
            mine, sweep.merged[1 / 6].state_dict[key], atol=1e-4, rtol=0, msg=key
        )
"your projection and the library's merge agree, in every tensor"

# %%
from fractions import Fraction


def share_words(share):
    """A share of r in words."""
    return {0: "nothing", 1: "all"}.get(share) or str(Fraction(share).limit_denominator(64))


def price(name, share):
    """What of the surrogate is frozen, and what is left of it, both as shares of its value at S."""
    frozen = left = 0.0
    for layer, M in updates(name, sweeps[name].merged[share]).items():
        vectors, S = taus[name][layer], solved[name][layer].start
        frozen += left_of(vectors, S, merging.shared_basis(vectors, round(share * min(S.shape))))
        left += left_of(vectors, M)
    return tuple(one / sum(at_start[name].values()) for one in (frozen, left))


prices = {(name, share): price(name, share) for name in sweeps for share in SHARES}
Table(
    ("experts", "share of r protected", "frozen %", "surrogate left %", "mean %", "worst task %"),
    [
        (
            name,
            share_words(share),
            *(100 * value for value in prices[name, share]),
            sweep.shares[share].mean,
            sweep.shares[share].worst,
        )
        for name, sweep in sweeps.items()
        for share in SHARES
    ],
    digits=1,
    caption="What protection costs",
    note="Frozen and left: of the surrogate's value at S. Mean and worst task: accuracy on validation images.",
)

# %% [markdown]
# Frozen and left together say how much of the way is open; whether that way is worth going is said by the two columns
# on the right.
#
# Now the test images, for the choices that somebody could make: nothing, the paper's `r // 6`, the share with the best
# mean on validation images, and automatic. And two controls. *`r // 6` random*: as many directions are protected, but
# random ones; if these cost the same, the shared subspace is nothing special, and if they cost less, it is the
# shared directions of all that a merge has to move (they also hold more of the surrogate, which the figure's right side
# shows for the shared ones). *All alike*: the merge ends as far from
# $S$ as the automatic one in each layer, but every direction is held by the same share; if that is as good, then going
# less far is all that the automatic protection does.

# %%
from dataclasses import replace
from itertools import pairwise

CHOSEN, AUTO, SIXTH, NOTHING = "chosen on validation", "automatic", "r // 6", "nothing protected"
RANDOM, ALIKE = "r // 6 random", "all alike"


def random_directions(way, vectors):
    """The way off k = r // 6 random directions."""
    draws = torch.Generator().manual_seed(SEED)
    return off_the_shared(
        way, torch.linalg.qr(torch.randn(len(way), min(way.shape) // 6, generator=draws)).Q
    )


def all_alike(way, vectors):
    """As long as what soft protection leaves of the way, in the way's own direction."""
    soft = merging.soft_projector(vectors, merging.Apgd().softness)
    return way * (way - soft @ way).norm() / way.norm()


chosen = {
    name: max(SHARES, key=lambda share, sweep=sweep: sweep.shares[share].mean)
    for name, sweep in sweeps.items()
}
final = {}
for name, sweep in sweeps.items():
    known = results[name].merged
    made = {
        AUTO: sweep.merged["auto"],
        RANDOM: merged_with(name, random_directions),
        ALIKE: merged_with(name, all_alike),
    }
    tests = Evaluator(pools[name], images=profile.test_images)
    scores = {label: tests.scores(one.state_dict) for label, one in made.items()}
    scores = {"average": known["average"], NOTHING: known[FREE], SIXTH: known[ONTO], **scores}
    same = {0: NOTHING, 1 / 6: SIXTH}.get(chosen[name])
    network = sweep.merged[chosen[name]].state_dict
    scores[CHOSEN] = scores[same] if same else tests.scores(network)
    data = {**dict.fromkeys(scores, "none"), CHOSEN: "labelled"}
    final[name] = replace(results[name], merged=scores, data_used=data)
final["mild"].summary()

# %%
final["hot"].summary()


# %%
def choice(name):
    """How the choices compare on test images."""
    one, sweep = final[name], sweeps[name]
    sixth, auto = (one.against(label, NOTHING) for label in (SIXTH, AUTO))
    rather, alike = one.against(SIXTH, RANDOM), one.against(AUTO, ALIKE)
    return (
        f"**{name.capitalize()} experts.** Of the shares, validation chooses: {share_words(chosen[name])} protected. "
        f"On test images `r // 6` is {sixth} points against nothing protected ({sixth.verdict}), and {rather} against "
        f"`r // 6` random directions ({rather.verdict}). Automatic, which amounts to "
        f"{100 * sweep.auto_share:.0f} % of r here, is {auto} against nothing protected ({auto.verdict}) and {alike} "
        f"against all alike ({alike.verdict})."
    )


say(
    "\n\n".join(map(choice, final))
    + "\n\nOne caution about the automatic choice: it looked at no image here, but its $\\kappa$ was chosen by this "
    "project, on validation images of pools made in this way. How it did on pools, networks and tasks that it was not "
    "chosen on is in `benchmarks/protection.md`, with the settings in which it loses.",
    holds={
        "what is frozen is left": all(frozen <= left + 1e-4 for frozen, left in prices.values()),
        "the more is protected, the more is frozen": all(
            prices[name, a][0] <= prices[name, b][0] + 1e-4
            for name in sweeps
            for a, b in pairwise(SHARES)
        ),
    },
    facts={
        f"05.{name}.{key}": value
        for name in final
        for key, value in (("auto", final[name].average(AUTO)), ("chosen_share", chosen[name]))
    },
)

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
def noisy(task_vectors, share, seed=SEED):
    """Every τ with noise of a share of its own length."""
    noise = torch.randn(task_vectors.shape, generator=torch.Generator().manual_seed(seed))
    unit = noise / noise.norm(dim=(1, 2), keepdim=True)
    return task_vectors + share * unit * task_vectors.norm(dim=(1, 2), keepdim=True)


BASES = merging.subspace.BASES
changes = {
    "noise of 10 % of ‖τ‖": [noisy(tau, 0.1)],
    "noise of 30 %": [noisy(tau, 0.3)],
    "noise of 100 %": [noisy(tau, 1.0)],
    "a task left out (mean over tasks)": [tau[torch.arange(T) != i] for i in range(T)],
    "hot experts in place of mild ones": [taus["hot"][LAYER]],
    "every τ shuffled": [shuffled(tau)],
}


def built(task_vectors, basis):
    """The k directions that a set of task vectors shares, as many of each task as before."""
    return merging.shared_basis(task_vectors, k, per_task=r // T, basis=basis)


own = {basis: built(tau, basis) for basis in BASES}
stays = {
    (change, basis): sum(overlap(own[basis], built(one, basis)) for one in others) / len(others)
    for change, others in changes.items()
    for basis in BASES
}
Table(
    ("change", "published basis stays %", "weighted basis stays %"),
    [(change, *(100 * stays[change, basis] for basis in BASES)) for change in changes],
    digits=1,
    caption=f"Overlap of the {k} shared directions of {LAYER} with those after the change",
    note=f"Chance: {100 * k / out:.1f} %.",
)

# %%
between = merging.principal_angles(*own.values())


def weighted_off(way, vectors):
    """The way off the weighted basis with k = r // 6."""
    return off_the_shared(way, shared_of(vectors, "weighted"))


def mean_accuracy(name, network):
    """On validation images, in per cent."""
    scores = judges[name].scores(network.state_dict).values()
    return sum(score.accuracy for score in scores) / len(scores)


weighted = {name: mean_accuracy(name, merged_with(name, weighted_off)) for name in pools}
frozen = {
    basis: left_of(tau, solved["mild"][LAYER].start, own[basis]) / at_start["mild"][LAYER]
    for basis in BASES
}
by_basis = {
    basis: [
        change
        for change in list(changes)[:-1]
        if stays[change, basis] == max(stays[change, one] for one in BASES)
    ]
    for basis in BASES
}
say(
    "What stays more: "
    + "; ".join(
        f"the {basis} basis under {'all these changes' if len(found) == len(changes) - 1 else ', '.join(found)}"
        for basis, found in by_basis.items()
        if found
    )
    + " (the shuffle apart). A direction of a small singular value is easily turned by noise, and the published basis "
    "counts it like any other.\n\nThe two are not the same subspace: "
    f"{int((between < 30).sum())} of the {k} principal angles between them are below 30° and "
    f"{int((between > 60).sum())} above 60°. In this layer the published one freezes {100 * frozen['published']:.0f} % "
    f"of the surrogate, the weighted one {100 * frozen['weighted']:.0f} %. With `r // 6` protected, the mean accuracy "
    "on validation images is "
    + "; ".join(
        f"{sweeps[name].shares[1 / 6].mean:.1f} % with the published and {weighted[name]:.1f} % with the weighted "
        f"basis ({name} experts)"
        for name in pools
    )
    + ".",
    holds={
        "with a little noise a basis stays more than after a shuffle": all(
            stays["noise of 10 % of ‖τ‖", basis] > stays["every τ shuffled", basis]
            for basis in BASES
        ),
        "more noise leaves less": all(
            stays["noise of 10 % of ‖τ‖", basis] > stays["noise of 100 %", basis] for basis in BASES
        ),
    },
)

# %% [markdown]
# ## What this run showed


# %%
def pays(difference):
    """A difference in words."""
    return {"better": "paid", "worse": "cost accuracy"}.get(
        difference.verdict, "made no difference that this run can see"
    )


hard = {name: pays(one.against(SIXTH, NOTHING)) for name, one in final.items()}
soft = {name: pays(one.against(AUTO, NOTHING)) for name, one in final.items()}
say(
    f"**What the tasks share can be computed.** In `{LAYER}`, {k} of {out} output directions hold "
    f"{common:.0f} % of the mean task vector ({100 * k / out:.0f} % by chance, {common_by_chance:.0f} % if "
    f"the numbers are shuffled first), and {sharing[LAYER].beyond} directions are written into by more tasks than any "
    "direction of random subspaces is.\n\n"
    f"**It can be protected.** With the gradient projected onto the complement, what is shared stays as it is in $S$ "
    "up to rounding. Projected into the subspace, it is all that moves.\n\n"
    "**Whether it should be, the subspace alone cannot say.** (All of this with the surrogate `full`.) "
    + " ".join(
        f"On the {name} experts, protecting `r // 6` directions froze {100 * prices[name, 1 / 6][0]:.0f} % of the "
        f"surrogate and {hard[name]}, against nothing protected; soft protection {soft[name]}."
        for name in final
    )
    + f" Inside the shared subspace the start keeps {min(inner):.0f} to {max(inner):.0f} % of what a task's expert "
    "does: the tasks share directions, and not, or only in part, what they do along them.\n\n"
    "The intervals are over test images, of one training seed; lesson 07 varies the seed.",
)

# %% [markdown]
# **In practice.** Do not protect because a recipe says so, and do not leave it because of one measurement on these
# experts. Compute what a share would freeze, which takes no data. If you have a few hundred labelled images for
# validation, let them choose between nothing, some shares and `"auto"`, by the worst task as well as by the mean. If
# you have none, remember what the constraint guarantees and what it does not: that the shared part is that of $S$, not
# that it is good. Experts by another optimiser are another case (Try it 1).
#
# ## Recap
#
# * An update writes along the left singular vectors $U$ and reads along the right ones, $V$. What tasks share is looked
#   for where they write.
# * Put the tasks' first directions side by side; a second SVD sorts all directions by how many tasks write there, and
#   makes them orthonormal. Only then is $P = U U^\top$ a projector.
# * The constraint is $P (M - S) = 0$, and a gradient keeps it if it is projected onto the complement, $(I - P) \nabla$.
# * Sharing a direction is not sharing the update along it. What is protected is frozen, at what $S$ has there.
#
# ## Try it
#
# 1. Experts made by AdamW: `make_pool(regime="hot", optimizer="adamw", …)` with the other arguments of `pool_of`, and
#    the sweep over shares for it. Eight experts have to be trained. Is the best share the same? (AdamW gives every
#    entry of the gradient its own scale, so that $-\tau$ stands for the gradient less well, and the surrogate with it.)
# 2. Let `keep` hold half of the shared part: `lambda way, vectors: way - 0.5 * (way - off_the_shared(way,
#    shared_of(vectors)))`. Compare it on validation images with the wall and with nothing.
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
