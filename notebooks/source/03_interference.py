# %% [markdown]
# # 03 · Task arithmetic and interference
#
# **By the end you will have shown that** one global λ trades tasks against each other.
#
# *Before this:* [02 · Naive averaging](02_naive_averaging.ipynb).

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
    """Base and experts of lesson 02, from the cache where they are there."""
    return make_pool(
        regime=regime,
        seed=SEED,
        base_steps=profile.base_steps,
        expert_steps=profile.expert_steps,
        source=source,
    )


pools = {"mild": pool_of("mild"), "hot": pool_of("hot")}
hot = pools["hot"]
titles = {name: task.title for name, task in hot.tasks.items()}
T = len(titles)

# %%
from apgd_teach.lessons import problem

header("03")

# %% [markdown]
# ## One number for all tasks
#
# The average takes a share of $1/T$ of every task vector. Nothing says that it has to be that share. **Task
# arithmetic** leaves it open:
#
# $$\theta^* = \theta_0 + \lambda \sum_i \tau_i, \qquad \tau_i = \theta_i - \theta_0 .$$
#
# $\lambda$ is the **merging coefficient**: at 0 this is the base, at $1/T$ the average, at 1 every step is taken in
# full. Write it for one layer. (Stuck? `problem("03.1").hint(1)`, and at the very end `problem("03.1").solution()`; the
# other exercises have them too.)

# %%
problem("03.1")


# %% tags=["exercise"]
def task_arithmetic(base, experts, coefficient):
    # your code: begin
    return base + coefficient * sum(expert - base for expert in experts)
    # your code: end


problem("03.1").check(task_arithmetic)

# %% [markdown] tags=["solution"]
# The base is taken off every expert before λ is applied. Were it taken off once at the end, $\lambda T$ bases would
# still be in the sum.

# %%
task_arithmetic = problem("03.1").use(task_arithmetic)

# %% [markdown]
# Your function on the real experts, tensor by tensor. At $\lambda = 0$ it must give the base, at $\lambda = 1/T$ the
# average of lesson 02. At another $\lambda$ the library's `merge` does the same to every weight; biases are no business
# of its methods, and it averages them whatever the $\lambda$ (the audit of lesson 02 said so).

# %%
import torch
from apgd_teach.merging import merge

weights = [key for key, tensor in hot.base.items() if tensor.ndim >= 2]


def at(name, coefficient):
    """Your task arithmetic on every tensor of a pool."""
    pool = pools[name]
    return {
        key: task_arithmetic(tensor, [expert[key] for expert in pool.experts.values()], coefficient)
        for key, tensor in pool.base.items()
    }


def same(mine, theirs, keys):
    """Raises where two networks differ by more than rounding."""
    for key in keys:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-4, atol=1e-5)


average = {name: merge(pool.base, pool.experts, "average") for name, pool in pools.items()}
library = merge(hot.base, hot.experts, "task_arithmetic", coefficient=0.3)
same(at("hot", 0), hot.base, hot.base)
same(at("hot", 1 / T), average["hot"].state_dict, hot.base)
same(at("hot", 0.3), library.state_dict, weights)
f"λ = 0 is the base and λ = 1/{T} the average, in every tensor; λ = 0.3 is the library's, in every weight"

# %% [markdown]
# ## Why one λ cannot suit everybody
#
# Write $S = \sum_i \tau_i$ and walk from the base along $S$; $\lambda$ says how far. Along this line the loss $L_j$ of
# task $j$ is, to second order,
#
# $$L_j(\theta_0 + \lambda S) \approx L_j(\theta_0) + \lambda\, \langle \nabla L_j, S\rangle
# + \frac{\lambda^2}{2}\, \langle S, H_j S\rangle .$$
#
# $\langle a, b\rangle$ is the sum of $a$ times $b$ over all entries, $\nabla L_j$ the gradient and $H_j$ the matrix of
# second derivatives of $L_j$, both at $\theta_0$. As a function of $\lambda$ this is a parabola. Where it is open
# upwards, it is lowest where its derivative $\langle \nabla L_j, S\rangle + \lambda \langle S, H_j S\rangle$ is zero:
#
# $$\lambda_j = \frac{-\langle \nabla L_j, S\rangle}{\langle S, H_j S\rangle}
# = \frac{-\langle \nabla L_j, \tau_j\rangle - \sum_{i \ne j} \langle \nabla L_j, \tau_i\rangle}
# {\langle S, H_j S\rangle} .$$
#
# Read the fraction term by term. Above the line, first the task's own step: $\tau_j$ went downhill on $L_j$, so this
# term should be positive. Then the steps of all others, which go downhill on *their* losses and may go either way on
# $L_j$. Below the line: how sharply $L_j$ bends along everybody's common step. None of this is the same for two tasks.
#
# So every task has a $\lambda_j$ of its own. Between the smallest and the largest of them, a step to a larger $\lambda$
# helps each task whose $\lambda_j$ is still ahead and hurts each one whose $\lambda_j$ is behind. Whoever sets one
# $\lambda$ for all decides who pays. That is an argument about parabolas; now the measurement.
#
# One more thing can be read off the fraction. Make all steps $c$ times as long: the upper part grows by $c$, the lower
# by $c^2$, and every $\lambda_j$ shrinks to $1/c$ of what it was.
#
# > **Predict before you run.** Which experts want the smaller λ, the mild or the hot ones? And will all tasks want
# > about the same?

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import Slider, draw_sweep, panel, sweep
from apgd_teach.merging import task_vectors

LAMBDAS = [0, 0.0125, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6]

vectors = {name: task_vectors(pool.base, pool.experts) for name, pool in pools.items()}
validation = {
    name: Evaluator(pool, images=profile.sweep_images, split="validation")
    for name, pool in pools.items()
}
sweeps = {
    name: sweep(validation[name], pool.base, vectors[name], LAMBDAS) for name, pool in pools.items()
}


def draw_accuracy(experts, coefficient):
    """Looks up: every λ was scored once, on validation images."""
    return draw_sweep(sweeps[experts], coefficient=coefficient)


panel(
    draw_accuracy,
    title="Task arithmetic over λ",
    static=[{"experts": "mild", "coefficient": 1 / T}, {"experts": "hot", "coefficient": 1 / T}],
    experts=Slider("experts", list(pools)),
    coefficient=Slider("merging coefficient λ", list(sweeps["hot"].coefficients), start=1 / T),
)

# %% [markdown]
# Move λ and watch the thin lines. Where the mean hardly changes, do the tasks stand still as well, or does one rise
# while another falls?
#
# The same sweep in nats, which is what the derivation was about: the **gap** $L_j(\theta^*) - L_j(\theta_j)$ of lesson
# 02. Drawn is how far each task's gap lies above its own smallest one, so every line touches zero, where the large mark
# is: there the task would put λ if it were asked alone. In the grey band, between the first mark and the last, somebody
# pays for every step.

# %%
from apgd_teach.figures import draw_tradeoff, show

show(draw_tradeoff(sweeps["mild"]))

# %%
from apgd_teach.course.prose import say


def step_length(name):
    """‖S‖, all tensors together."""
    total = [sum(tau[key] for tau in vectors[name].values()) for key in pools[name].base]
    return float(torch.cat([one.flatten() for one in total]).norm())


def wishes(name):
    """From which λ to which the tasks' wishes reach."""
    own = sweeps[name].own
    return f"from {min(own.values()):g} to {max(own.values()):g}"


longer = step_length("hot") / step_length("mild")
say(
    f"The {T} mild experts want λ {wishes('mild')}, the hot ones {wishes('hot')} (of those that were tried). The mean "
    f"gap is smallest at λ = {sweeps['mild'].common:g} for the mild and at λ = {sweeps['hot'].common:g} for the hot "
    f"ones, whose $\\lVert S\\rVert$ is {longer:.1f} times as long. "
    + (
        "For them even the shortest step that was tried is a loss on average: among hot experts task arithmetic finds "
        "nothing better than not merging at all."
        if sweeps["hot"].common == 0
        else "The longer the steps, the smaller the λ."
        if sweeps["hot"].common < sweeps["mild"].common
        else "That is not what the fraction said."
    ),
    facts={"03.mild.common": sweeps["mild"].common, "03.hot.common": sweeps["hot"].common},
)

# %% [markdown]
# ### The bill
#
# Let every task of the mild experts choose λ for all, on validation images, and present the bill on **test** images:
# how much each task's gap grows (+) or shrinks (−) against the one λ with the smallest mean gap on validation images.
# Test images choose nothing, here or anywhere in the course.

# %%
from apgd_teach.evaluate import compare
from apgd_teach.tables import Table

own, common = sweeps["mild"].own, sweeps["mild"].common
highest = {
    name: {
        "highest mean": swept.coefficients[swept.means.index(max(swept.means))],
        "highest worst task": max(
            zip(swept.worst, swept.coefficients, strict=True), key=lambda pair: pair[0][1]
        )[1],
    }
    for name, swept in sweeps.items()
}
tried = {
    "mild": {1 / T, common, *own.values(), *highest["mild"].values()},
    "hot": {1 / T, *highest["hot"].values()},
}
on_test = {
    name: compare(
        pool,
        {f"{coefficient:g}": at(name, coefficient) for coefficient in sorted(tried[name])},
        images=profile.test_images,
    )
    for name, pool in pools.items()
}
tests = {name: Evaluator(pool, images=profile.test_images) for name, pool in pools.items()}


def signed(value):
    """A number with its sign; what rounds to zero has none."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0"


gaps = {
    coefficient: on_test["mild"].gap(f"{coefficient:g}") for coefficient in {common, *own.values()}
}
Table(
    ("λ", "wanted by", *titles.values()),
    [
        (
            f"{coefficient:g}",
            "; ".join(titles[task] for task in own if own[task] == coefficient) or "no task",
            *(signed(gaps[coefficient][task] - gaps[common][task]) for task in titles),
        )
        for coefficient in sorted(gaps)
    ],
    caption=f"What another λ than {common:g} does to each gap: nats, test images, mild experts",
    note=f"λ = {common:g} has the smallest mean gap on validation images. {on_test['mild'].tier}.",
)

# %% [markdown]
# Is that more than noise? Take the two tasks of a pool that have most at stake between them on validation images: what
# the one pays at the other's λ and what the other pays at the one's, added up. Then ask the test images, image by
# image: does each of the two really do better at its own λ?

# %%
from itertools import permutations
from math import sqrt


def most_at_stake(swept):
    """The two tasks that would pay most at each other's λ on validation images; the smaller λ first."""

    def stake(pair):
        return sum(
            swept.gaps[task][swept.coefficients.index(swept.own[other])] - min(swept.gaps[task])
            for task, other in (pair, pair[::-1])
        )

    pairs = [
        pair for pair in permutations(swept.own, 2) if swept.own[pair[0]] <= swept.own[pair[1]]
    ]
    return max(pairs, key=stake)


def ask(name):
    """Per task of that pair: its λ, the other's, its gap at the one less that at the other, and half the interval."""
    pair = most_at_stake(sweeps[name])
    judge = Evaluator(pools[name].only(pair))  # all test images of these two
    found = {}
    for task, other in (pair, pair[::-1]):
        scales = [sweeps[name].own[which] for which in (task, other)]
        here, there = (judge.score(at(name, scale), task).losses for scale in scales)
        less = here - there
        found[task] = (*scales, float(less.mean()), 1.96 * float(less.std()) / sqrt(len(less)))
    return found


trades = {name: ask(name) for name in pools}
Table(
    ("experts", "task", "its λ", "the other's λ", "gap at its own λ minus gap at the other's"),
    [
        (name, titles[task], f"{here:g}", f"{there:g}", f"{signed(less)} ± {margin:.3f}")
        for name, found in trades.items()
        for task, (here, there, less, margin) in found.items()
    ],
    caption="Two tasks, each at its own λ and at the other's (nats)",
    note="Below zero: better at its own. ±: 95 % interval over all test images of these tasks, paired image by image.",
)

# %% [markdown]
# ## The average or the worst case?
#
# A λ has to be set by some rule, and the rule decides who is served. Two rules, both on validation images: the highest
# *mean* accuracy over the tasks, or the highest accuracy of the *worst* task. (Whichever it is: validation images have
# labels. With a λ chosen in this way task arithmetic is not a method without data; it has used labels to set one
# number.)
#
# > **Predict before you run.** Will the two rules choose the same λ? For which experts is the mean the better looking
# > number?


# %%
def outcome(name, label):
    """Mean accuracy, worst accuracy and the title of the worst task, on test images."""
    task, lowest = on_test[name].worst(label)
    return on_test[name].average(label), lowest, titles[task]


Table(
    ("experts", "λ chosen by", "λ", "mean %", "worst %", "worst task"),
    [
        row
        for name in pools
        for row in (
            (name, "nobody: the base", "–", *outcome(name, "base")),
            (name, f"nobody: the average, 1/{T}", f"{1 / T:g}", *outcome(name, f"{1 / T:g}")),
            *(
                (name, rule, f"{coefficient:g}", *outcome(name, f"{coefficient:g}"))
                for rule, coefficient in highest[name].items()
            ),
        )
    ],
    caption="Two rules for λ, chosen on validation images, reported on test images",
    note=f"{on_test['hot'].tier}.",
)

# %% [markdown]
# A mean is what the whole pays, a worst case is what one user gets. Report both, always, and say which of the two the
# settings were chosen by. In practice: where every task has users who would leave, choose by the worst task; where
# only the sum counts, by the mean; and where one task must not lose anything, leave its expert out of the merge.
#
# ### A trap beside λ · in depth
#
# λ in `merge` is for weights. A bias is a vector: it has no singular directions, and most methods leave it alone. So
# something else has to be decided for it: the library averages biases, or keeps the base's where a policy says so. Here
# is what that does when the weights are left where they are, $\lambda = 0$:

# %%
trap = {}
for name, pool in pools.items():
    kept_biases, averaged = (
        merge(pool.base, pool.experts, "task_arithmetic", coefficient=0, policy={"*.bias": choice})
        for choice in ("keep", "average")
    )
    same(kept_biases.state_dict, pool.base, pool.base)
    trap[name] = compare(
        pool, {"averaged": averaged}, images=profile.sweep_images, split="validation"
    )

say(
    "With $\\lambda = 0$ and the biases kept, the merge is the base. With the experts' average biases,\n\n"
    + "\n".join(
        f"* **{name} experts**: {one.average('averaged'):.1f} % in place of {one.average('base'):.1f} %, "
        f"{one.against('averaged')} points ({one.against('averaged').verdict});"
        for name, one in trap.items()
    )
    + "\n\non validation images. Biases are few, and they move with the weights that they belong to. Whoever scales "
    "the one should look at the other: the audit says what was done to every tensor.",
)

# %% [markdown]
# ## Interference: who gets in whose way
#
# In the derivation the other tasks' steps stood in the sum $\sum_{i \ne j} \langle \nabla L_j, \tau_i \rangle$. Without
# data there is no gradient, but the task vectors themselves can be compared, layer by layer. Three measures, each for
# two tasks $i$ and $j$:
#
# * **cosine**: $\langle \tau_i, \tau_j\rangle / (\lVert\tau_i\rVert \lVert\tau_j\rVert)$, as in lesson 01;
# * **opposite signs**: the share of the weight $|\tau_i \tau_j|$, summed over entries, that lies in entries where one
#   task goes up and the other down. 50 % means that signs agree as often as not. Above, they write over each other;
# * **overlap of output directions**: with $\tau_i = U_i S_i V_i^\top$, how far the first columns of $U_i$ and of $U_j$
#   span the same space, whatever the signs: whether they write into the same places at all.

# %%
from apgd_teach.figures import draw_interference, pairwise_interference

between = pairwise_interference(vectors["hot"])
MEASURES = {"cosine": "cosine", "opposite signs": "conflict", "output directions": "overlap"}


def draw_between(layer, measure):
    """Two choices of the reader's, for the hot experts."""
    return draw_interference(between, layer=layer, measure=MEASURES[measure], titles=titles)


panel(
    draw_between,
    title="Interference of the hot experts",
    static=[
        {"layer": "linear.weight", "measure": "opposite signs"},
        {"layer": "linear.weight", "measure": "output directions"},
    ],
    layer=Slider("layer", weights, start="linear.weight"),
    measure=Slider("measure", list(MEASURES), start="opposite signs"),
)

# %% [markdown]
# Two pairs can have the same overlap and opposite meanings: two tasks that write into the same directions with the
# same signs help each other, with opposite signs they undo each other. And two that share nothing do not meet at all.
#
# ### Does that say what a merge costs? · in depth
#
# All measures above are read off the weights. Whether they predict anything is a question for test images: take every
# two of the experts, average just these two, and measure the gap that each of the two tasks is left with.
#
# > **Predict before you run.** Look at the map above, in several of its layers (the test below takes all weights
# > together), and name the pair that will be cheapest to merge, and the dearest.

# %%
from apgd_teach.figures import draw_pairs, measure_pairs

pairs = measure_pairs(Evaluator(hot, images=profile.sweep_images), hot.base, hot.experts)
show(draw_pairs(pairs, measure="conflict"))

# %%
lengths = {
    task: float(torch.cat([one.flatten() for one in tau.values()]).norm())
    for task, tau in vectors["hot"].items()
}
reach = [sum(lengths[task] for task in pair) / 2 for pair in pairs.pairs]
easy, hard = (pairs.end("conflict", alike=alike) for alike in (True, False))
cheap, dear = (choose(range(len(pairs.pairs)), key=pairs.gaps.__getitem__) for choose in (min, max))
Table(
    ("pair", "", "opposite signs %", "cosine", "mean ‖τ‖", "gap, nats", "accuracy lost, points"),
    [
        (
            pairs.name(place),
            what,
            f"{pairs.measures['conflict'][place]:.0f}",
            f"{pairs.measures['cosine'][place]:.2f}",
            f"{reach[place]:.1f}",
            f"{pairs.gaps[place]:.2f}",
            f"{pairs.lost[place]:.1f}",
        )
        for place, what in (
            (easy, "fewest opposite signs"),
            (hard, "most opposite signs"),
            (cheap, "smallest gap"),
            (dear, "largest gap"),
        )
    ],
    caption="Two experts averaged: what the weights said, and what it cost (mean of the two tasks)",
    note=f"Of {len(pairs.pairs)} pairs; {profile.sweep_images:,} test images a task, hot experts.",
)

# %%
from apgd_teach.figures import spearman

correlation, chance = pairs.correlation("conflict"), pairs.by_chance("conflict")
by_length = spearman(reach, list(pairs.gaps))
rank = 1 + sum(one > reach[dear] for one in reach)
say(
    f"Over the {len(pairs.pairs)} pairs the rank correlation of opposite signs with the gap is **{correlation:.2f}** "
    f"(1: the more signs are opposite, the larger the gap; 0: the one says nothing of the other). If the tasks' names "
    f"were dealt out at random, one as far from 0 would come up in {chance:.1f} % of the deals: "
    + (
        "the weights did say something about the cost before any image was looked at."
        if chance < 5 and correlation > 0
        else "in this run the signs alone do not tell what a pair costs."
    )
    + f" A plainer measure beside it, the mean length ‖τ‖ of the two, has {by_length:.2f}: the signs "
    + ("say more than that." if correlation > by_length else "say no more than that.")
    + f" The pair with the most opposite signs, *{pairs.name(hard)}*, costs {pairs.gaps[hard]:.2f} nats and "
    f"{pairs.lost[hard]:.1f} points of accuracy; the one with the fewest, *{pairs.name(easy)}*, {pairs.gaps[easy]:.2f} "
    f"nats and {pairs.lost[easy]:.1f} points."
    + (
        ""
        if dear == hard
        else f"\n\nBut the dearest pair of all is another one: *{pairs.name(dear)}*, with "
        f"{pairs.measures['conflict'][dear]:.0f} % of opposite signs (the pair with the most has "
        f"{pairs.measures['conflict'][hard]:.0f} %), {pairs.gaps[dear]:.2f} nats and {pairs.lost[dear]:.1f} points. "
        + (
            f"What signs do not know is how *long* the steps are: by mean length this pair is number {rank} of "
            f"{len(reach)}. Half of each of two long steps can be far from both ends."
            if rank <= len(reach) // 4
            else "Neither the signs nor the length of the steps say why: the losses would have to be asked."
        )
    ),
    facts={"03.pairs.correlation": correlation},
)

# %% [markdown]
# **When two tasks are in strong conflict**, merging them needs a reason. The map costs seconds and no data, so look at
# it before a merge: a pair that stands out can be served by two networks, by a merge of the others with one expert kept
# beside it, or by a method that looks at directions (below, and from lesson 05 on). And measure on your own images
# whether the pair stands out there as well: the map is a hint and no verdict.
#
# ## What each method throws away
#
# If steps get into each other's way, one can scale them one by one, throw a part of them away, or turn them. Four
# methods, each a few lines. None of them looks at data.
#
# ### A λ for every task: task-aware coefficients
#
# The paper of this course keeps every direction and takes a $\lambda_i$ per task, in each layer by itself, from the
# length of the step alone: $\lambda_i = \eta / \lVert\tau_i\rVert$. The further an expert went, the less of it is
# taken. $\lVert\tau_i\rVert$ is the Frobenius norm, the root of the sum of the squares of all entries; $\eta$ is a
# length.

# %%
problem("03.2")


# %% tags=["exercise"]
def task_aware(task_vectors, eta):
    # your code: begin
    return eta / task_vectors.flatten(1).norm(dim=1)
    # your code: end


problem("03.2").check(task_aware)

# %% [markdown] tags=["solution"]
# Every $\lambda_i\tau_i$ then has the length $\eta$, whatever the length of $\tau_i$ was.

# %%
task_aware = problem("03.2").use(task_aware)

# %% [markdown]
# The paper sets $\eta = 0.07$ for every layer. That number is a length, and suits the task vectors that it was found
# on, of CLIP, where $\lVert\tau\rVert$ is about 0.23 per layer and $\lambda$ comes out near 0.3. The library's default
# is a rule in place of the number, $\eta = c \cdot \operatorname{median}_j \lVert\tau_j\rVert$ with an ordinary
# coefficient $c$: a task of median length has $\lambda = c$ whatever the scale, and no $\lambda_i$ is above 1. Your
# function with both:

# %%
C = 0.3


def median_eta(stack):
    """η of the library's rule for one layer (task, out, in)."""
    return C * float(stack.flatten(1).norm(dim=1).quantile(0.5))


lambdas = {}
for name in pools:
    for key in weights:
        stack = torch.stack([one[key].flatten(1) for one in vectors[name].values()])
        lambdas[name, key] = (
            stack.flatten(1).norm(dim=1),
            task_aware(stack, 0.07),
            task_aware(stack, median_eta(stack)).clamp(max=1),
        )


def span(values):
    """The smallest and the largest of several numbers."""
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


Table(
    (
        "experts",
        "layer",
        "‖τ‖, shortest to longest task",
        "λ at η = 0.07",
        f"λ at η = {C:g} · median",
    ),
    [(name, key, *map(span, one)) for (name, key), one in lambdas.items()],
    caption="Task-aware coefficients, by layer",
)

# %%
audit = merge(hot.base, hot.experts, "task_aware", coefficient=C).audit
order = [list(titles).index(task) for task in audit.experts]  # the audit has an order of its own
facts = {row.name: row.facts["coefficients"] for row in audit.rows if row.policy == "merge"}
shrunk = torch.stack([one["linear.weight"] for one in vectors["hot"].values()])
steps = {
    (rule, scale): float(
        torch.einsum(
            "t,toi->oi",
            task_aware(scale * shrunk, 0.07 if rule == "η = 0.07" else median_eta(scale * shrunk)),
            scale * shrunk,
        ).norm()
    )
    for rule in ("η = 0.07", "median")
    for scale in (1, 10)
}
longest = max(
    float(lengths.max() / lengths.min())
    for (name, _), (lengths, _, _) in lambdas.items()
    if name == "hot"
)
say(
    "Make every task vector ten times as long, and the merged step of `linear.weight` becomes "
    f"{steps['median', 10] / steps['median', 1]:.2f} times as long by the median rule and "
    f"{steps['η = 0.07', 10] / steps['η = 0.07', 1]:.2f} times with the fixed η, which sets the length of each part by "
    "itself, however far the experts went. Within a layer the longest of the hot task vectors is at most "
    f"{longest:.2f} times as long as the shortest. If all were equally long, the rule would be task arithmetic with "
    "λ = c.",
    holds={
        "the learner's λ are the library's": all(
            torch.allclose(torch.tensor(found), lambdas["hot", key][2][order], rtol=1e-4)
            for key, found in facts.items()
        ),
        "a fixed η forgets the scale, the median rule keeps it": abs(
            steps["η = 0.07", 10] / steps["η = 0.07", 1] - 1
        )
        < 1e-3
        and abs(steps["median", 10] / steps["median", 1] - 10) < 1e-2,
    },
)

# %% [markdown]
# ### Trim and elect: TIES
#
# The idea: most entries of a task vector are small and can be spared. **TIES** keeps the 20 % of each expert's entries
# that are largest in magnitude, sets the others to zero, lets the entries that are left *elect* a sign (that of their
# sum), and averages those that have it. Opposite signs are gone, by decree. The first step is yours:

# %%
problem("03.3")


# %% tags=["exercise"]
def trim(task_vector, share):
    # your code: begin
    count = round(share * task_vector.numel())
    least = task_vector.abs().flatten().topk(count).values.min()
    return task_vector * (task_vector.abs() >= least)
    # your code: end


problem("03.3").check(trim)

# %% [markdown] tags=["solution"]
# The smallest magnitude among the `count` largest is the threshold: everything at or above it stays. Where several
# entries have just that magnitude, all of them stay, which for real numbers hardly ever happens.

# %%
trim = problem("03.3").use(trim)

# %% [markdown]
# Over all layers together, as the paper has it: an expert's weights in one long row, trimmed by your function; then
# election and mean. Beside it the library's `ties`.

# %%
SHARE = 0.2


def long_rows(name):
    """All weights of every task vector in one row per task: (task, entry)."""
    return torch.stack(
        [torch.cat([tau[key].flatten() for key in weights]) for tau in vectors[name].values()]
    )


def elect(rows):
    """Which entries are left and have the sign of the sum of what is left."""
    return rows * rows.sum(dim=0).sign() > 0


rows = {name: long_rows(name) for name in pools}
trimmed = {name: torch.stack([trim(row, SHARE) for row in one]) for name, one in rows.items()}
elected = {name: elect(one) for name, one in trimmed.items()}
mine = (trimmed["hot"] * elected["hot"]).sum(dim=0) / elected["hot"].sum(dim=0).clamp_min(1)

merged_ties = {
    name: merge(pool.base, pool.experts, "ties", trim=SHARE) for name, pool in pools.items()
}
theirs = torch.cat(
    [(merged_ties["hot"].state_dict[key] - hot.base[key]).flatten() for key in weights]
)
apart = int((~torch.isclose(mine, theirs, rtol=1e-3, atol=1e-5)).sum())
assert apart <= 4 * T, apart
f"yours and the library's differ in {apart} of {len(mine):,} entries (a threshold may keep one more)"

# %%
energy = {name: one.square().sum(dim=1) for name, one in rows.items()}
Table(
    ("task", "20 % of the entries hold, % of ‖τ‖²", "of these lost in the election, %"),
    [
        (
            titles[task],
            100 * float(trimmed["hot"][i].square().sum() / energy["hot"][i]),
            100 - 100 * float(elected["hot"][i].sum() / (trimmed["hot"][i] != 0).sum()),
        )
        for i, task in enumerate(titles)
    ],
    caption="TIES on the hot experts: what is kept",
    note="First column: the share of the squared length. Second: the share of the entries that were kept.",
)

# %% [markdown]
# ### Drop at random: DARE · in depth
#
# **DARE** drops each entry with probability $p$ and divides what is left by $1 - p$. With $m$ an entry's coin, 1 with
# probability $1 - p$ and else 0, what becomes of one entry $\tau$ is $\tilde\tau = m\tau/(1-p)$. Its mean is
#
# $$\frac{(1-p)\,\tau}{1-p} = \tau ,$$
#
# so on average nothing is lost. Its mean square is $(1-p)\,\tau^2/(1-p)^2 = \tau^2/(1-p)$, and so, over all entries,
#
# $$\text{mean of } \lVert\tilde\tau\rVert^2 = \frac{\lVert\tau\rVert^2}{1-p}, \qquad
# \text{mean of } \lVert\tilde\tau - \tau\rVert^2 = \frac{p}{1-p}\,\lVert\tau\rVert^2 .$$
#
# At the paper's $p = 0.9$ the second is nine times $\lVert\tau\rVert^2$: DARE trades overlap for noise. That is
# harmless where steps are so tiny that even a few lengths of noise do not show, as the paper found for language models
# that were fine-tuned a little; and whether it is harmless here is a question for the table below.

# %%
from apgd_teach.merging import Dare

DROP = 0.9
tau = vectors["hot"]["digits-rotated45"]["linear.weight"]
dropped = Dare(coefficient=1, drop=DROP)(tau[None]).matrix
say(
    f"One task vector, *{titles['digits-rotated45']}*, in `linear.weight`: after DARE with p = {DROP:g} its squared "
    f"length is {float(dropped.square().sum() / tau.square().sum()):.2f} times what it was (1/(1 − p) = "
    f"{1 / (1 - DROP):.0f}), that of the noise {float((dropped - tau).square().sum() / tau.square().sum()):.2f} times "
    f"(p/(1 − p) = {DROP / (1 - DROP):.0f}).",
    holds={
        "DARE's energy grows by 1/(1 − p), to a tenth": abs(
            float(dropped.square().sum() / tau.square().sum()) * (1 - DROP) - 1
        )
        < 0.1
    },
)

# %% [markdown]
# ### Make directions orthogonal: TSV-M · in depth
#
# **TSV-M** looks at singular directions. Write $\tau_i = U_i S_i V_i^\top$ and keep the first $k = \lfloor r/T \rfloor$
# triples of each task, $r$ being the smaller side of the layer's matrix: then all tasks together have at most $r$ of
# them. Put them side by side, $U = [U_1 \dots U_T]$, $V = [V_1 \dots V_T]$, and all singular values into one diagonal
# $S$. What is left of the sum of the task vectors is then
#
# $$\sum_i U_i S_i V_i^\top = U S V^\top .$$
#
# Feed it a direction that only task $j$ should read, a column $v$ of $V_j$:
#
# $$U S V^\top v = \underbrace{U_j S_j V_j^\top v}_{\text{what task } j \text{ wanted}}
# + \sum_{i \ne j} U_i S_i \underbrace{V_i^\top v}_{\text{crosstalk}} .$$
#
# Crosstalk is zero if the columns of $V$ are orthogonal across tasks. They are not; so replace $V$ by the nearest
# matrix $Q$ that has orthonormal columns, and $U$ likewise. Nearest means that
#
# $$\lVert Q - V\rVert^2 = \lVert Q\rVert^2 + \lVert V\rVert^2 - 2\,\langle Q, V\rangle$$
#
# is least. The first two terms are the same for every such $Q$, so $\langle Q, V\rangle$ has to be largest. With the
# singular value decomposition $V = A D B^\top$,
#
# $$\langle Q, A D B^\top\rangle = \langle A^\top Q B, D\rangle
# = \sum_k D_{kk}\, (A^\top Q B)_{kk} \le \sum_k D_{kk} ,$$
#
# because no entry of $A^\top Q B$ is larger than 1 when $Q$ has orthonormal columns. Equality holds for
# $Q = A B^\top$: the decomposition with its singular values set to one.

# %%
from apgd_teach.merging import TsvM


def side_by_side(stack):
    """U, the singular values and V of the first r // T triples of every task, side by side."""
    k = min(stack.shape[1:]) // len(stack)
    U, S, Vt = torch.linalg.svd(stack, full_matrices=False)
    return (
        torch.cat([one[:, :k] for one in U], dim=1),
        torch.cat([one[:k] for one in S]),
        torch.cat([one[:k].T for one in Vt], dim=1),
    )


def nearest(matrix):
    """The nearest matrix with orthonormal columns."""
    A, _, Bt = torch.linalg.svd(matrix, full_matrices=False)
    return A @ Bt


def crosstalk(side):
    """The share of ‖VᵀV‖² that lies between columns of different tasks."""
    products, k = (side.T @ side).square(), side.shape[1] // T
    same = torch.block_diag(*[torch.ones(k, k)] * T).bool()
    return 100 * float(products[~same].sum() / products.sum())


stack = torch.stack([one["conv3.weight"].flatten(1) for one in vectors["hot"].values()])
U, S, V = side_by_side(stack)
mine = nearest(U) * S @ nearest(V).T
theirs = TsvM()(stack).matrix
difference = float((mine - theirs).norm() / theirs.norm())

# %%
say(
    f"In `conv3.weight` of the hot experts, {100 * float(S.square().sum() / stack.square().sum()):.0f} % of the "
    f"squared length is in the first {len(S) // T} of {min(stack.shape[1:])} directions of each task. Between tasks "
    f"lay {crosstalk(V):.0f} % of $\\lVert V^\\top V\\rVert^2$ on the input side and {crosstalk(U):.0f} % of "
    f"$\\lVert U^\\top U\\rVert^2$ on the output side; after turning, {crosstalk(nearest(V)):.0f} % and "
    f"{crosstalk(nearest(U)):.0f} %. By hand and by the library the update is the same up to {difference:.0e} of its "
    "length.",
    holds={
        "TSV-M by hand is the library's": difference < 1e-2,
        "no crosstalk is left": max(crosstalk(nearest(V)), crosstalk(nearest(U))) < 0.01,
    },
)

# %% [markdown]
# ## Side by side
#
# What each method keeps of a task vector before it scales anything: of its entries, of its energy
# $\lVert\tau\rVert^2$, and of the singular directions of each layer. And what that gives. Each method may choose its λ
# on validation images from a list (by mean accuracy), so that none is judged at a scale that does not suit it; the
# average has nothing to choose. Biases stay the base's for all of them but the average, so that a small $\lambda$ is a
# small step and nothing else (the trap above).
#
# > **Predict before you run.** Which of them will have the best worst task among the hot experts? Is it the one that
# > throws away least?

# %%
from dataclasses import replace

GRIDS = {
    "task arithmetic": ("task_arithmetic", [0.0125, 0.025, 0.05, 0.1, 0.2]),
    "task-aware λ": ("task_aware", [0.0125, 0.025, 0.05, 0.1, 0.2]),
    "TIES": ("ties", [0.0625, 0.125, 0.25, 0.5, 1]),
    "DARE": ("dare", [0.0125, 0.025, 0.05, 0.1, 0.2]),
    "TSV-M": ("tsv_m", [0.0625, 0.125, 0.25, 0.5, 1]),
}


def scaled(merged, factor):
    """The same merge with another λ: M is λ times something that does not depend on λ."""
    base = hot.base  # both pools have the same base
    return {key: base[key] + factor * (one - base[key]) for key, one in merged.state_dict.items()}


def best_scale(name, method, grid):
    """A method's network at the λ of a list with the highest mean accuracy on validation images, and that λ."""
    pool, keep = pools[name], {"*.bias": "keep"}
    one = merge(pool.base, pool.experts, method, coefficient=grid[0], policy=keep)
    networks = {coefficient: scaled(one, coefficient / grid[0]) for coefficient in grid}
    means = {
        coefficient: sum(score.accuracy for score in validation[name].scores(state).values()) / T
        for coefficient, state in networks.items()
    }
    best = max(means, key=means.get)
    return networks[best], best


made = {
    name: {label: best_scale(name, *settings) for label, settings in GRIDS.items()}
    for name in pools
}
# Base, experts and average were scored above, on the same images.
final = {
    name: replace(
        on_test[name],
        merged={
            "average": on_test[name].merged[f"{1 / T:g}"],
            **{label: tests[name].scores(state) for label, (state, _) in made[name].items()},
        },
    )
    for name in pools
}


# %%
def directions_kept(name):
    """TSV-M: shares of the energy and of the directions in the first r // T of every task and layer, in per cent."""
    first, every, k, r = 0.0, 0.0, 0, 0
    for key in weights:
        stack = torch.stack([one[key].flatten(1) for one in vectors[name].values()])
        small = stack if stack.shape[1] <= stack.shape[2] else stack.mT
        squares = torch.linalg.eigvalsh(small @ small.mT).flip(1)  # squared singular values
        count = squares.shape[1] // T
        first, every = first + squares[:, :count].sum(), every + squares.sum()
        k, r = k + count, r + squares.shape[1]
    return 100 * float(first / every), 100 * k / r


def kept(name, method):
    """Shares of the entries, the energy and the directions of τ that a method keeps before it scales, in per cent."""
    if method == "TIES":
        held = (rows[name] * elected[name]).square().sum() / rows[name].square().sum()
        return 100 * float(elected[name].float().mean()), 100 * float(held), None
    if method == "DARE":
        return 100 * (1 - DROP), 100 * (1 - DROP), None
    if method == "TSV-M":
        return None, *directions_kept(name)
    return 100.0, 100.0, 100.0


def measured(name, label):
    """Mean, difference from the base, worst task and its title, on test images."""
    result, (task, lowest) = final[name], final[name].worst(label)
    against = "–" if label in ("base", "experts") else str(result.against(label))
    return result.average(label), against, lowest, titles[task]


def side_by_side_table(name):
    """Every method with what it keeps and what came of it."""
    scales = {"average": 1 / T, **{label: scale for label, (_, scale) in made[name].items()}}
    return Table(
        (
            "method",
            "entries %",
            "energy %",
            "directions %",
            "λ",
            "mean %",
            "against the base",
            "worst %",
            "worst task",
        ),
        [
            ("base", None, None, None, "–", *measured(name, "base")),
            *(
                (label, *kept(name, label), f"{scale:g}", *measured(name, label))
                for label, scale in scales.items()
            ),
            ("each its own expert", None, None, None, "–", *measured(name, "experts")),
        ],
        caption=f"What is kept of τ, and what comes of it: {name} experts, accuracy on test images",
        note="Against the base: points, with the 95 % interval over test images. λ: chosen on validation images from a "
        f"list. {final[name].tier}.",
    )


side_by_side_table("hot")

# %%
side_by_side_table("mild")


# %%
def best_by(name, measure):
    """The method with the highest mean, or the highest worst task, in the table of a pool."""
    result = final[name]
    value = result.average if measure == "mean" else lambda label: result.worst(label)[1]
    return max(result.merged, key=value)


def place_among(name):
    """A sentence on the methods of one pool."""
    result, by_mean, by_worst = final[name], best_by(name, "mean"), best_by(name, "worst")
    lead = result.against(by_mean, "task arithmetic")
    return (
        f"**{name.capitalize()} experts.** The highest mean has {by_mean} with {result.average(by_mean):.1f} %: "
        + (
            "task arithmetic itself"
            if by_mean == "task arithmetic"
            else f"{lead} points against task arithmetic ({lead.verdict})"
        )
        + f", and {result.against(by_mean)} against the base ({result.against(by_mean).verdict}). The highest worst "
        f"task has {by_worst}, {result.worst(by_worst)[1]:.1f} % on *{titles[result.worst(by_worst)[0]]}*; the base's "
        f"is {result.worst('base')[1]:.1f} %. Against task arithmetic: "
        + ", ".join(
            f"{label} {result.against(label, 'task arithmetic')} points "
            f"({result.against(label, 'task arithmetic').verdict})"
            for label in ("task-aware λ", "DARE", "TIES")
        )
        + "."
    )


say(
    "\n\n".join(place_among(name) for name in final),
    holds={
        "TIES keeps most of the energy in a fifth of the entries": all(
            kept(name, "TIES")[0] < 20 and kept(name, "TIES")[1] > 50 for name in final
        ),
        "the average of the hot experts keeps everything, and loses": final["hot"]
        .against("average")
        .verdict
        == "worse",
    },
)

# %% [markdown]
# Compare the columns. TIES keeps a small share of the entries and most of the energy; the average keeps all of both,
# and loses among the hot experts all the same. A λ at the small end of its list means that the best of such a method
# is to take hardly any step. What gets lost in a merge is not only what is thrown away beforehand, it
# is what the tasks do to each other in the sum. And none of these methods asks how large the *gap* becomes that it
# leaves: lessons 04 to 06 build one that starts from that question.
#
# ## What this run showed


# %%
def trade(name):
    """What one of the two tasks pays and the other one saves, and whether that is more than noise."""
    (low, one), (high, other) = trades[name].items()
    shown = all(less + margin < 0 for _, _, less, margin in (one, other))
    return (
        f"**{name.capitalize()} experts: {'shown' if shown else 'not shown in this run'}.** The tasks want λ "
        f"{wishes(name)}. *{titles[low]}* wants {one[0]:g} and *{titles[high]}* {other[0]:g}: on test images, "
        f"moving from the first to the second changes the gap of the one by {signed(-one[2])} ± {one[3]:.3f} nats and "
        f"that of the other by {signed(other[2])} ± {other[3]:.3f}."
        + (
            ""
            if shown
            else " Not both are seen to do better at their own λ. Where nearly every common step is too long for "
            "nearly every task, there is little to trade."
        )
    )


sides = {name: outcome(name, f"{1 / T:g}") for name in pools}
cost, saving = (-less for _, _, less, _ in trades["mild"].values())
say(
    "**One global λ trades tasks against each other.**\n\n"
    + "\n\n".join(trade(name) for name in pools)
    + f"\n\n**Average or worst case.** The average (λ = 1/{T}) of the mild experts has {sides['mild'][0]:.1f} % in the "
    f"mean and {sides['mild'][1]:.1f} % on its worst task, that of the hot ones {sides['hot'][0]:.1f} % and "
    f"{sides['hot'][1]:.1f} %; the base {outcome('mild', 'base')[0]:.1f} % and {outcome('mild', 'base')[1]:.1f} %.\n\n"
    "Intervals (95 %) cover the choice of test images; they do not cover the training seed. Lesson 07 does.",
    holds={
        "the mild experts want different λ": len(set(own.values())) > 1,
        "hot experts want a smaller λ than mild ones": sweeps["hot"].common < common,
    },
    facts={
        "03.mild.lowest_lambda": min(own.values()),
        "03.mild.highest_lambda": max(own.values()),
        "03.trade.cost": cost,
        "03.trade.saving": saving,
    },
)

# %% [markdown]
# ## Recap
#
# * Task arithmetic adds $\lambda \sum_i \tau_i$ to the base; $\lambda = 1/T$ is the average.
# * Along $\lambda$ every task has a bowl of its own, with its own lowest point. Between the lowest points no $\lambda$
#   is better for all: the choice is about who pays. State which rule chose it, the mean or the worst task, and on
#   which images.
# * What two tasks do to each other can be seen in the weights: opposite signs, and shared output directions.
# * Task-aware coefficients throw nothing away; they make every step of a layer equally long. $\eta$ in
#   $\lambda_i = \eta / \lVert\tau_i\rVert$ is a length: a value from one network means nothing in another.
# * TIES throws away small entries and outvoted signs, DARE random ones (for noise), TSV-M all but the first directions
#   of each task, which it then turns apart.
#
# ## Try it
#
# 1. Sweep only the tasks of one family: `few = pools["mild"].only([...])`, then `sweep(Evaluator(few, …), few.base,
#    task_vectors(few.base, few.experts), LAMBDAS)`. Is the grey band narrower than that of all eight?
# 2. How much of DARE can these experts bear? `merge(hot.base, hot.experts, "dare", coefficient=0.1, drop=0.99)`, and
#    0.999, on validation images. By the formula, how long is the noise beside the step itself? Where does it begin to
#    show?
# 3. Keep another share in TIES: `trim=0.05` and `trim=0.5`. What happens to the first column of its table, and to the
#    accuracy on *validation* images?
# 4. Give each family its own λ: `merge` once with the digits' experts alone and once with the fashion experts alone,
#    and add the two steps. Can two numbers serve everybody better than one? What did you use to choose them?
#
# **Next:** [04 · The gap](04_the_gap.ipynb).
#
# *References.* Task arithmetic: Ilharco et al., ICLR 2023, [arXiv 2212.04089](https://arxiv.org/abs/2212.04089). TIES:
# Yadav et al., NeurIPS 2023, [arXiv 2306.01708](https://arxiv.org/abs/2306.01708). DARE: Yu et al., ICML 2024,
# [arXiv 2311.03099](https://arxiv.org/abs/2311.03099). TSV-M: Gargiulo et al., CVPR 2025,
# [arXiv 2412.00081](https://arxiv.org/abs/2412.00081). Task-aware coefficients: Wei et al., ICML 2025,
# [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). What the library does where these papers are silent is in the
# docstrings of `Ties`, `Dare`, `TsvM` and `TaskAware`.
