# %% [markdown]
# # 04 · The gap
#
# **By the end you will have shown that** the gap can be estimated without data, and where that estimate breaks.
#
# *Before this:* [03 · Task arithmetic and interference](03_interference.ipynb).

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

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)


def pool_of(regime, optimizer="sgd", tasks=None):
    """Base and experts in this profile's size, from the cache where they are there."""
    return make_pool(
        regime=regime,
        optimizer=optimizer,
        seed=SEED,
        tasks=tasks,
        base_steps=profile.base_steps,
        expert_steps=profile.expert_steps,
        source=source,
    )


# %%
from apgd_teach.lessons import problem

header("04")

# %% [markdown]
# ## What a merge would have to know
#
# Lesson 02 measured what the user of task $j$ loses by the merge, the gap $L_j(\theta^*) - L_j(\theta_j)$, on test
# images. A merge has no images. It has $\theta_0$ and the experts $\theta_1, \dots, \theta_T$, and nothing else. This
# lesson looks for something that can be computed from these alone and says how large each task's gap is.
#
# Such an estimate is a chain of replacements, and each link can hold or break. So it is first tried where every right
# answer is known, and then on the experts of lesson 02.
#
# ## A laboratory with known answers
#
# A task $j$ of the laboratory is a linear regression: for an input $x$ the right output is $W_j x$. A weight $W$ is
# wrong by $(W - W_j)x$, and its loss is half the expected square of that,
#
# $$L_j(W) = \tfrac12\, E\,\lVert (W - W_j)\,x \rVert^2 = \tfrac12 \operatorname{tr}\left[(W - W_j)\, C_j\,
# (W - W_j)^\top\right], \qquad C_j = E\, x x^\top .$$
#
# $E$ is the mean over the task's inputs, $\operatorname{tr}$ the sum of a matrix's diagonal. $C_j$ says which input
# directions the task uses, and how much: in a direction that its inputs hardly ever take, an error costs next to
# nothing. Base $\theta_0$ and experts are weights $W$; an expert is what some steps of gradient descent make of the
# base. Loss, gradient, gap and the one best weight for all tasks together are formulas here.
#
# The smallest such laboratory has two tasks and two weights, so that all of it can be drawn.

# %%
from apgd_teach.figures import Slider, draw_laboratory, measure_laboratory, panel
from apgd_teach.merging import make_laboratory

laboratory = make_laboratory(n_tasks=2, out=1, in_=2, distance=1.0, seed=SEED)
plane = measure_laboratory(laboratory, steps=12)

# %% [markdown]
# Light is a low total loss of the two tasks. The circle is the base, the triangles are the experts, the blue square is
# their average, and the star is the right answer: the lowest total loss there is. No merge knows it, since it takes
# both $C_j$ to compute it. The orange path starts at S, near the average, and belongs to a merge that sees base and
# experts only. Lesson 06 takes that path step by step. Here the question is why it should lead anywhere good: each step
# makes something smaller that stands for the gaps, and this lesson derives it.
#
# > **Predict before you run.** Which will end nearer the star, the average or the path?

# %%
panel(
    lambda steps: draw_laboratory(plane, steps=steps),
    title="Two tasks, two weights, and the right answer",
    static=[{"steps": 0}, {"steps": 12}],
    steps=Slider("steps of descent", list(range(13))),
)

# %%
closed, reached = plane.closed, plane.path_closed[-1]
say(
    f"The average closes {100 * closed['average']:.1f} % of the base's total gap, the end of the path "
    f"{100 * reached:.1f} % and the star {100 * closed['optimum']:.1f} %. (At 100 % the tasks' gaps add up to zero.) "
    f"By the loss, the path ends **{'nearer' if reached > closed['average'] else 'no nearer'}** to the right answer "
    "than the average in this draw.",
    holds={
        "no weight has a lower total loss than the optimum": closed["optimum"]
        >= max(*closed.values(), *plane.path_closed) - 1e-9
    },
)

# %% [markdown]
# ## First link: a straight line for the loss
#
# Write $M = \theta^* - \theta_0$ for the step of the merge and $\tau_j = \theta_j - \theta_0$ for that of the expert.
# Both start from $\theta_0$, so expand the loss there. $\langle A, B \rangle$ is the sum of the products of the entries
# of $A$ and $B$, and $\nabla L_j(\theta_0)$ the gradient of the loss at the base:
#
# $$L_j(\theta_0 + M) = L_j(\theta_0) + \langle \nabla L_j(\theta_0), M \rangle + \text{terms with } M \text{ twice
# and more},$$
#
# $$L_j(\theta_0 + \tau_j) = L_j(\theta_0) + \langle \nabla L_j(\theta_0), \tau_j \rangle + \text{terms with } \tau_j
# \text{ twice and more}.$$
#
# The first line is the merged network's loss, the second one the expert's. Subtract, and leave the higher terms out:
#
# $$L_j(\theta^*) - L_j(\theta_j) \approx \langle \nabla L_j(\theta_0),\, M - \tau_j \rangle .$$
#
# How wrong is that? The laboratory's loss has no terms beyond the second, so take the base's own gap ($M = 0$) for an
# expert that was trained until nothing changed, $\theta_j = W_j$. The gradient of the loss is $(W - W_j)\,C_j$; at the
# base $W - W_j = -\tau_j$, so
#
# $$\nabla L_j(\theta_0) = -\tau_j C_j .$$
#
# The true gap, with $L_j(\theta_j) = 0$:
#
# $$L_j(\theta_0) - L_j(\theta_j) = \tfrac12 \operatorname{tr}\left[\tau_j C_j \tau_j^\top\right] .$$
#
# The estimate:
#
# $$\langle \nabla L_j(\theta_0),\, 0 - \tau_j \rangle = \langle \tau_j C_j, \tau_j \rangle = \operatorname{tr}\left[
# \tau_j C_j \tau_j^\top\right] .$$
#
# Exactly twice the true gap: a straight line with the slope that a parabola has at the base falls twice as far as the
# parabola does.
#
# > **Predict before you run.** That was an expert at the bottom of its parabola. If it took one step only and stopped
# > on its way down, is the estimate still twice the true gap, more than twice, or less?

# %%
from apgd_teach.figures import draw_along, laboratory_along

TRAINED = {"1 step": 1, "2 steps": 2, "3 steps": 3, "5 steps": 5, "10 steps": 10, "ever": None}
trained = {
    name: make_laboratory(n_tasks=2, out=1, in_=2, distance=1.0, seed=SEED, steps=steps)
    for name, steps in TRAINED.items()
}
walks = {
    name: laboratory_along(one, one.tuned[0], end="the expert of task 0")
    for name, one in trained.items()
}
panel(
    lambda trained: draw_along(walks[trained], share=1.0, task="task 0"),
    title="From the base to an expert",
    static=[{"trained": "1 step"}, {"trained": "ever"}],
    trained=Slider("expert trained for", list(TRAINED)),
)

# %%
from itertools import pairwise

from apgd_teach.tables import Table

ratios = {
    name: [
        float(one.first_order_gap(one.initial)[task] / one.gap(task, one.initial))
        for task in range(one.n_tasks)
    ]
    for name, one in trained.items()
}
Table(
    ("expert trained for", "task 0", "task 1"),
    [(name, *each) for name, each in ratios.items()],
    digits=3,
    caption="The base's own gap: first-order estimate as a multiple of the true one",
)

# %%
say(
    f"For an expert trained for one step the estimate is {ratios['1 step'][0]:.2f} times the true gap (task 0), for "
    f"one trained for ever {ratios['ever'][0]:.2f} times. On a parabola the base's gap is overestimated as long as the "
    "expert did not step beyond the bottom: by a factor between one, which an expert comes near that hardly moved, and "
    "two, for one that went all the way.",
    holds={
        "trained for ever, the factor is two": max(abs(ratio - 2) for ratio in ratios["ever"])
        < 1e-9,
        "on a parabola the factor lies between one and two": all(
            1 - 1e-9 < ratio < 2 + 1e-9 for each in ratios.values() for ratio in each
        ),
        "the longer an expert was trained, the larger the factor": all(
            one[task] <= other[task] + 1e-9
            for one, other in pairwise(ratios.values())
            for task in (0, 1)
        ),
    },
)

# %% [markdown]
# A factor that is the same for all tasks would do no harm: who loses more than whom would still come out right. Keep in
# mind what it grew with: how far the expert went.
#
# ## Second link: no gradient
#
# $\nabla L_j(\theta_0)$ takes data. But the expert's own fine-tuning followed gradients. With plain gradient descent of
# step $a$, step $k$ is $\theta^{(k+1)} = \theta^{(k)} - a\,\nabla L_j(\theta^{(k)})$. Add up all $n$ steps from
# $\theta^{(0)} = \theta_0$ to $\theta^{(n)} = \theta_j$:
#
# $$\tau_j = \theta_j - \theta_0 = -a \sum_{k=0}^{n-1} \nabla L_j(\theta^{(k)}) .$$
#
# The task vector *is* a sum of negative gradients, those along the way. As far as they all point where the first one
# points, $-\tau_j$ is the gradient at the base times a positive number that nobody knows. Put it in:
#
# $$L_j(\theta^*) - L_j(\theta_j) \;\propto\; -\langle \tau_j,\, M - \tau_j \rangle .$$
#
# No data is left in it. Its unit is a squared weight and not the nat, so it cannot say how large a gap is; it can say
# which task's is larger. At the base, $M = 0$, it must give $\lVert\tau_j\rVert^2$, and for a merge that is the task's
# own expert, $M = \tau_j$, zero. (Stuck? `problem("04.1").hint(1)`, then `hint(2)` and `hint(3)`;
# `problem("04.1").solution()` shows the answer.)

# %%
problem("04.1")


# %% tags=["exercise"]
def estimated_gap(task_vectors, update):
    # your code: begin
    return -(task_vectors * (update - task_vectors)).sum(dim=(1, 2))
    # your code: end


problem("04.1").check(estimated_gap)

# %% [markdown] tags=["solution"]
# Entry by entry, then added up over a layer's rows and columns: that is ⟨ , ⟩. The estimate of a whole network is the
# sum over its layers.

# %%
estimated_gap = problem("04.1").use(estimated_gap)

# %% [markdown]
# ### How much of a gradient is a task vector? · in depth
#
# In the laboratory, of which a larger one stands here, the sum can be checked to the last digit; and how far the
# gradient turned on the way is the cosine between $-\tau_j$ and $\nabla L_j(\theta_0)$. One means the same direction,
# zero a right angle.

# %%
import torch


def cosine(one, other):
    """Of two tensors, entry by entry."""
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


large = make_laboratory(out=16, in_=16, seed=SEED)
way = large.path(0, large.steps)
summed = sum(large.gradient(0, place) for place in way[:-1])
torch.testing.assert_close(large.task_vectors[0], -large.lr * summed)
turned = cosine(summed, large.gradient(0, way[0]))
say(
    f"τ is the sum of {large.steps} steps, to the last digit. The cosine of −τ and the gradient at the base is "
    f"{turned:.2f}: here the gradient becomes shorter on the way and hardly turns, since the few directions that "
    "a task uses here count alike, and all others next to nothing.",
    holds={"in the laboratory the gradient hardly turns": turned > 0.95},
)

# %% [markdown]
# Real experts have momentum, small batches and a loss that is no parabola. Here are several sets of them, all from one
# base: SGD with a *gentle* learning rate below the mild one, mild and hot as in lesson 02, and three experts made by
# AdamW, which divides every entry of a step by the typical size of that entry's gradients. An entry whose gradients are
# tiny then moves about as far as one whose gradients are large, and a sum of such steps is no sum of gradients.
#
# > **Predict before you run.** Order them by that cosine: gentle, mild, hot, AdamW.

# %%
from apgd_teach.training import Recipe

SOME = ["digits-rotated45", "digits-inverted", "fashion-flipped"]
RATES = (0.01, 0.08)[: profile.heat_rates]  # beside mild and hot
mild, hot = pool_of("mild"), pool_of("hot")
pools = {
    pool.recipe.lr: pool
    for pool in (
        *(pool_of(Recipe("sgd", rate, steps=profile.expert_steps)) for rate in RATES),
        mild,
        hot,
    )
}
pools = {rate: pools[rate] for rate in sorted(pools)}
gentle = pools[min(pools)]
adamw = pool_of("mild", optimizer="adamw", tasks=SOME)
titles = {name: task.title for name, task in mild.tasks.items()}

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import loss_gradients
from apgd_teach.merging import task_vectors
from apgd_teach.merging.statedict import relative_norm

# One base, and so one gradient per task at it, for all pools.
gradients = loss_gradients(Evaluator(mild, images=profile.test_images), mild.base)
layers = [name for name, tensor in mild.base.items() if tensor.ndim >= 2]


def joined(vector, names):
    """Some tensors as one long vector."""
    return torch.cat([vector[name].flatten() for name in names])


def mean(values):
    """Of anything that can be added up."""
    values = list(values)
    return sum(values) / len(values)


def length(pool, tasks):
    """‖τ‖/‖θ₀‖ in per cent, mean over some tasks."""
    return 100 * mean(relative_norm(pool.base, pool.experts[task]) for task in tasks)


made = {f"SGD, {rate:g}": pool for rate, pool in pools.items()}
made[f"AdamW, {adamw.recipe.lr:g}"] = adamw
where = {**{layer: [layer] for layer in layers}, "all of them": layers}
alike = {}
for name, pool in made.items():
    vectors = task_vectors(pool.base, pool.only(SOME).experts)
    alike[name] = {
        column: mean(
            -cosine(joined(vectors[task], chosen), joined(gradients[task], chosen)) for task in SOME
        )
        for column, chosen in where.items()
    }
Table(
    ("optimiser, learning rate", "‖τ‖/‖θ₀‖ %", *where),
    [(name, length(made[name], SOME), *each.values()) for name, each in alike.items()],
    digits=2,
    caption="Cosine of −τ and the gradient at the base, by layer",
    note=f"Mean over three tasks: {'; '.join(titles[task] for task in SOME)}. Gradients on the first "
    f"{profile.test_images:,} test images of each.",
)

# %%
together = {name: each["all of them"] for name, each in alike.items()}
*sgd, by_adamw = together
near = min(sgd, key=lambda name: abs(length(made[name], SOME) - length(adamw, SOME)))
numbers = sum(mild.base[name].numel() for name in layers)


def r(value):
    """A correlation or a gap in writing."""
    return f"{value:.2f}".replace("-", "−")


say(
    f"Two random directions of {numbers:,} numbers have a cosine of about {numbers**-0.5:.4f}. The gentle experts' "
    f"−τ has {r(together[sgd[0]])} with the gradient, the hot ones' {r(together[sgd[-1]])}: nothing like a random "
    "direction, and a long way from the gradient itself.\n\n"
    f"AdamW's experts went {length(adamw, SOME):.1f} % of ‖θ₀‖ and have {r(together[by_adamw])}. The SGD experts "
    f"that went about as far ({near}, {length(made[near], SOME):.1f} %) have {r(together[near])}: at that distance "
    f"AdamW's task vector is **{'less' if together[by_adamw] < together[near] else 'no less'}** of a gradient.",
    holds={
        "−τ of SGD's experts lies on the gradient's side": min(together[name] for name in sgd) > 0,
        "the hottest experts' −τ is less of a gradient than the gentlest ones'": together[sgd[-1]]
        < together[sgd[0]],
    },
)

# %% [markdown]
# ## Real experts: predicted against measured
#
# Six merges of the mild experts. The first four methods are those of lesson 03, here with one coefficient for each that
# was fixed beforehand and not the one that validation images chose there: TIES and TSV-M take their step in full
# (coefficient 1). *The paper* and *full residual* make a surrogate of the gap small that this lesson comes to below
# (`Apgd(granularity="row", …)` and the method called `"wudi"`); lesson 06 shows how.

# %%
from apgd_teach.evaluate import compare
from apgd_teach.figures import estimated_gaps
from apgd_teach.merging import Apgd, merge

merges = {
    "average": merge(mild.base, mild.experts, "average"),
    "task arithmetic, λ = 0.3": merge(mild.base, mild.experts, "task_arithmetic", coefficient=0.3),
    "TIES": merge(mild.base, mild.experts, "ties"),
    "TSV-M": merge(mild.base, mild.experts, "tsv_m"),
    "the paper": merge(
        mild.base, mild.experts, Apgd(granularity="row", protect=1 / 6, trim=0.3, flatten=0.0)
    ),
    "full residual": merge(mild.base, mild.experts, "wudi"),
}
vectors = task_vectors(mild.base, mild.experts)
stacks = {
    layer: torch.stack([tau[layer].flatten(1) for tau in vectors.values()]) for layer in layers
}


def update_of(network):
    """M of each merged layer as a matrix (out, in); None stands for the base."""
    if network is None:
        return {layer: torch.zeros_like(stack[0]) for layer, stack in stacks.items()}
    return {layer: (network.state_dict[layer] - mild.base[layer]).flatten(1) for layer in layers}


mine = sum(
    estimated_gap(stacks[layer], update) for layer, update in update_of(merges["average"]).items()
)
Table(
    ("task", "your estimate of the gap under the average"),
    [(titles[task], float(value)) for task, value in zip(vectors, mine, strict=True)],
    digits=2,
    note="In squared units of weight, summed over the layers that are merged; biases are left out.",
)

# %% [markdown]
# That is a forecast, made from weights alone. Now open the envelope.
#
# > **Predict before you run.** Which two tasks will have the largest measured gap? And will the eight tasks come in the
# > order of your estimates?

# %%
from apgd_teach.figures import draw_estimate

compared = compare(mild, merges, images=profile.test_images)
estimates = estimated_gaps(mild.base, vectors, merges, compared, gradients=gradients)
theirs = torch.tensor(list(estimates.data_free["average"].values()))
torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6, check_dtype=False)
panel(
    lambda network: draw_estimate(estimates, label=network),
    title="The gap, estimated and measured",
    static=[{"network": "average"}, {"network": "the paper"}],
    network=Slider("mild experts, merged by", list(merges)),
)

# %% [markdown]
# A mark per task: the estimate across, the measured gap upwards. On the left the estimate without data, where only the
# order from left to right counts; on the right the same with the true gradients, in nats, where a perfect estimate
# would lie on the dotted line.
#
# The order is summed up by the **rank correlation**: 1 where both have the tasks in the same order, 0 where the orders
# have nothing to do with each other, −1 where one is the other reversed. Eight tasks are few, so it stands beside the
# share of all possible orders that would do as well by luck.
#
# One more column, since part of the order is no news. At the base the estimate is $\lVert\tau_j\rVert^2$: who went far
# is expected to lose much, whatever is merged. What the *merge* does to task $j$ is the change from the base,
# $L_j(\theta^*) - L_j(\theta_0)$; the estimate of it is $\langle\nabla L_j(\theta_0), M\rangle$, and without data
# $-\langle\tau_j, M\rangle$. That column asks about $M$ alone.

# %%
from itertools import permutations

from apgd_teach.figures import spearman

ORDERS = torch.tensor(list(permutations(range(len(vectors)))))


def by_luck(one, other):
    """The share of all orders of the tasks that agree with `other` at least as well as `one` does."""
    mine, theirs = (torch.tensor(line).argsort().argsort() for line in (one, other))
    apart = (ORDERS - theirs).square().sum(dim=1)
    return float((apart <= (mine - theirs).square().sum()).double().mean())


def of(numbers, label):
    """Tasks' numbers for one network, in one order."""
    return list(numbers[label].values())


def changes(numbers, label):
    """The same, less what they are at the base."""
    return [numbers[label][task] - numbers["base"][task] for task in numbers[label]]


def longest(network):
    """The longest step of a merged tensor, in per cent of the base's."""
    return 100 * max(row.relative_step for row in network.audit.rows if row.policy == "merge")


agreement = {}
for label in merges:
    free, true = estimates.data_free, estimates.measured
    agreement[label] = (
        spearman(of(free, label), of(true, label)),
        by_luck(of(free, label), of(true, label)),
        spearman(changes(free, label), changes(true, label)),
        by_luck(changes(free, label), changes(true, label)),
    )
Table(
    ("merge", "order of the gaps", "by luck %", "order of the changes", "by luck %"),
    [
        (label, gaps, 100 * luck, changed, 100 * lucky)
        for label, (gaps, luck, changed, lucky) in agreement.items()
    ],
    digits=2,
    caption="Rank correlation over the eight tasks: estimate without data, and measured",
)

# %%
gaps, luck, changed, lucky = agreement["average"]
far = sum(stack.square().sum(dim=(1, 2)) for stack in stacks.values()).tolist()
reach = spearman(far, of(estimates.measured, "average"))


def largest(numbers):
    """The two tasks with the largest numbers, by title."""
    return " and ".join(titles[task] for task in sorted(numbers, key=numbers.get)[:-3:-1])


say(
    f"The two largest forecasts for the average were {largest(estimates.data_free['average'])}; the two largest gaps "
    f"are {largest(estimates.measured['average'])}. The gaps are ordered with a rank correlation of **{r(gaps)}** "
    f"({100 * luck:.1f} % of all orders do as well), what the merge changes with **{r(changed)}** ({100 * lucky:.1f} "
    f"%). The lengths $\\lVert\\tau_j\\rVert^2$ alone order the gaps with {r(reach)}"
    + (
        ": about as well as the estimate, so it is the changes that show what $M$ has to say.\n\n"
        if reach >= gaps - 0.1
        else ", less well than the estimate.\n\n"
    )
    + f"Over the six merges the correlations with the gaps lie between {r(min(one[0] for one in agreement.values()))} "
    f"and {r(max(one[0] for one in agreement.values()))}, with the changes between "
    f"{r(min(one[2] for one in agreement.values()))} and {r(max(one[2] for one in agreement.values()))}: what holds "
    "for one merge need not hold for the next.",
    holds={
        "for the average of the mild experts, gaps and changes are ordered better than by luck": min(
            gaps, changed
        )
        > 0.3
    },
    facts={"04.mild.gaps": gaps, "04.mild.changes": changed},
)

# %% [markdown]
# ## A straight line has no bottom · in depth
#
# The estimate was made to compare tasks. Can it compare *merges*, and so say how to merge? Walk in one direction, $M =
# s\,D$, and look at what it says:
#
# $$-\langle \tau_j,\, s D - \tau_j \rangle = \lVert\tau_j\rVert^2 - s\,\langle \tau_j, D \rangle .$$
#
# Where $D$ points along $\tau_j$ at all, this falls for ever: the longer the step, the better. It becomes negative,
# which would be a merged network that beats the task's own expert, and then more so. The loss does something else.
#
# The figure shows the line, and the **parabola** with the loss's true curvature at the base: the next term of the
# expansion, which is as much a matter of the base's neighbourhood as the line is.
#
# > **Predict before you run.** The way goes from the base through the average, at a quarter of it, to half the sum of
# > all task vectors. Where will the measured gap be lowest, for the mild and for the hot experts?

# %%
from apgd_teach.figures import gap_along

END = "θ₀ + ½ Σ τ"
ways = {}
for name, pool in (("mild", mild), ("hot", hot)):
    half = merge(pool.base, pool.experts, "task_arithmetic", coefficient=0.5)
    ways[name] = gap_along(
        Evaluator(pool, images=profile.plane_images),
        pool.base,
        half.state_dict,
        points=profile.path_points,
        end=END,
    )
named = {"mean over the tasks": "all", **{title: task for task, title in titles.items()}}
panel(
    lambda experts, share, task: draw_along(ways[experts], share=share, task=named[task]),
    title="From the base through the average, and on",
    static=[{"experts": "mild", "share": 1.0}, {"experts": "hot", "share": 0.25}],
    experts=Slider("experts", ["mild", "hot"]),
    share=Slider("share of the way", list(ways["mild"].steps), start=0.25),
    task=Slider("task", list(named)),
)

# %%
lowest = {}
for name, walked in ways.items():
    gaps = [mean(each) for each in zip(*walked.gaps.values(), strict=True)]
    place = gaps.index(min(gaps))
    lowest[name] = {
        "at": "at the base itself" if place == 0 else f"{walked.steps[place]:.2f} of the way along",
        "gap": gaps[place],
        "base": gaps[0],
        "average": gaps[walked.steps.index(0.25)],
        "end": gaps[-1],
        "line": gaps[0] + mean(walked.slopes.values()),
    }
say(
    "\n".join(
        f"* **{name} experts**: the mean gap is lowest {found['at']} ({r(found['gap'])} nats; {r(found['base'])} at "
        f"the base, {r(found['average'])} at the average, {r(found['end'])} at the end). The first-order line promises "
        f"{r(found['line'])} at the end."
        for name, found in lowest.items()
    )
    + f"\n\nMeans over the tasks, on the first {profile.plane_images:,} test images of each.",
    holds={
        "the first-order line promises less gap at the end than at the base": all(
            found["line"] < found["base"] for found in lowest.values()
        ),
        "for hot experts the measured gap is lower before the end": lowest["hot"]["end"]
        > lowest["hot"]["gap"],
    },
)

# %% [markdown]
# So "make the estimate as small as possible" is no way to merge. Make it **zero** instead: ask for an $M$ that every
# task's expert would call its own, as far as the estimate can tell.
#
# ## Third link: a residual that vanishes
#
# The inner product of two matrices is the trace of one times the other transposed: $\langle A, B\rangle =
# \operatorname{tr}(B A^\top)$. With it the estimate is a trace,
#
# $$-\langle \tau_j,\, M - \tau_j \rangle = -\operatorname{tr} R_j, \qquad R_j = (M - \tau_j)\,\tau_j^\top ,$$
#
# of the **residual** $R_j$ of task $j$ in this layer, a matrix with one row and one column for each of the layer's $d$
# outputs. It says how $M$ differs from $\tau_j$, seen along the input directions that $\tau_j$ itself uses. How much of
# it is to be zero is a choice, called the *granularity*:
#
# | granularity | what is to vanish | in words |
# |---|---|---|
# | `layer` | $(\operatorname{tr} R_j)^2$ | the estimate itself: one number per layer, in which rows may cancel |
# | `row` | $\lVert\operatorname{diag} R_j\rVert^2$ | one number per output unit, as in the paper's public code |
# | `full` | $\lVert R_j\rVert^2$ | every entry |
#
# Each of them is a **surrogate** of the gap: something that can be made small without data. They are one family,
# since each bounds the one before. The trace is the diagonal times a vector of $d$ ones, of length $\sqrt d$, and the
# product of two vectors is at most that of their lengths (Cauchy and Schwarz); the diagonal is part of the matrix:
#
# $$(\operatorname{tr} R_j)^2 \le d\,\lVert\operatorname{diag} R_j\rVert^2 \le d\,\lVert R_j\rVert^2 .$$

# %%
problem("04.2")


# %% tags=["exercise"]
def row_surrogate(task_vector, update):
    # your code: begin
    return float(((update - task_vector) * task_vector).sum(dim=1).square().sum())
    # your code: end


problem("04.2").check(row_surrogate)

# %% [markdown] tags=["solution"]
# The diagonal of $(M - \tau)\tau^\top$ holds the products of each row with itself, so the $d \times d$ matrix is never
# needed.

# %%
row_surrogate = problem("04.2").use(row_surrogate)

# %% [markdown]
# On the real layers, for the average of the mild experts, and how much of each bound is used up. Near 100 % in the
# first column of shares all rows of a layer say the same; near zero they cancel. In the second one, near 100 % nothing
# stands off the diagonal.

# %%
from apgd_teach.merging import surrogate

GRANULARITIES = ("layer", "row", "full")
rows, bounded = [], True
for layer, update in update_of(merges["average"]).items():
    stack = stacks[layer].double()
    d = stack.shape[1]
    trace, diagonal, whole = (surrogate(stack, update.double(), one) for one in GRANULARITIES)
    theirs = torch.tensor([row_surrogate(tau, update.double()) for tau in stack]).double()
    torch.testing.assert_close(theirs, diagonal)
    bounded &= bool((trace <= d * diagonal * (1 + 1e-9)).all())
    bounded &= bool((diagonal <= whole * (1 + 1e-9)).all())
    rows.append(
        (
            layer,
            d,
            100 * float((trace / (d * diagonal)).mean()),
            100 * float((diagonal / whole).mean()),
        )
    )
Table(
    ("layer", "d", "(tr R)² of d ‖diag R‖², %", "‖diag R‖² of ‖R‖², %"),
    rows,
    caption="Real residuals under the average, mean over the tasks",
)

# %%
say(
    f"The chain holds for all {len(layers) * len(vectors)} residuals. Off the diagonal, where neither `layer` nor "
    f"`row` looks, lies between {100 - max(row[3] for row in rows):.0f} and {100 - min(row[3] for row in rows):.0f} % "
    "of $\\lVert R \\rVert^2$.",
    holds={"(tr R)² ≤ d‖diag R‖² ≤ d‖R‖² for every task and layer": bounded},
)

# %% [markdown]
# Now all merges in one table: what each leaves of the estimate and of the three surrogates, as shares of what they are
# at the base, and what it leaves of the gap, measured. *The paper* minimises `row` (with a constraint and a trim, which
# lessons 05 and 06 explain), *full residual* minimises `full`.
#
# > **Predict before you run.** A merge that makes `row` small: what does it do to `full`, of which `row` is a part?


# %%
def shares(network):
    """Estimate and surrogates as shares of the base's, in per cent; every layer and task counts the same."""
    moved, still = update_of(network), update_of(None)
    found = {name: [] for name in ("estimate", *GRANULARITIES)}
    for layer, stack in stacks.items():
        at, before = moved[layer], still[layer]
        found["estimate"].append((estimated_gap(stack, at) / estimated_gap(stack, before)).mean())
        for one in GRANULARITIES:
            found[one].append((surrogate(stack, at, one) / surrogate(stack, before, one)).mean())
    return {name: 100 * float(mean(values)) for name, values in found.items()}


left = {label: shares(network) for label, network in merges.items()}
still_open = {
    label: 100 * mean(of(estimates.measured, label)) / mean(of(estimates.measured, "base"))
    for label in merges
}
steps = {label: longest(network) for label, network in merges.items()}
Table(
    ("merge", "longest step ‖M‖/‖θ₀‖", "estimate", *GRANULARITIES, "measured gap"),
    [
        (
            label,
            *map(round, (steps[label], *left[label].values(), still_open[label])),
        )
        for label in merges
    ],
    caption="What each merge leaves, in per cent of the base's",
    note="Measured gap: mean over the tasks, test images. Longest step: of the merged layers.",
)

# %%
order = {
    name: spearman([each[name] for each in left.values()], list(still_open.values()))
    for name in ("estimate", *GRANULARITIES)
}
paper, full_one = left["the paper"], left["full residual"]
say(
    "Does less of one of these mean less of a gap? Over the six merges the rank correlation with the measured gap is "
    f"{r(order['estimate'])} for the estimate, {r(order['layer'])} for `layer`, {r(order['row'])} for `row` and "
    f"{r(order['full'])} for `full` (six merges are few).\n\n"
    f"The paper's merge leaves {paper['row']:.0f} % of `row` and {paper['full']:.0f} % of `full`"
    + (
        ": it pays for small numbers on the diagonal with large ones beside it. "
        if paper["full"] > 100
        else ". "
    )
    + f"It leaves {still_open['the paper']:.0f} % of the gap, the average {still_open['average']:.0f} %: here it "
    f"**{'loses to' if still_open['the paper'] > still_open['average'] else 'beats'}** plain averaging. *Full "
    f"residual* leaves {full_one['full']:.0f} % of `full` and {still_open['full residual']:.0f} % of the gap.\n\n"
    "A surrogate gives a direction to descend in. It does not say how good the network is that one arrives at; only a "
    "measurement does. What lessons 05 and 06 add, a constraint and a walk that stops on its way, is held against the "
    "gap in the same manner there.",
    holds={
        "the paper's merge makes `row` smaller than the average does": paper["row"]
        < left["average"]["row"],
        "over the six merges the estimate does not give the order of the gaps": order["estimate"]
        < 0.8,
        "the full residual's merge leaves less of `full` than any other": full_one["full"]
        <= min(each["full"] for each in left.values()),
    },
)

# %% [markdown]
# ## Where it breaks: the hotter the fine-tuning
#
# Both links live near the base. The line is a tangent there, and $-\tau_j$ is like the gradient there only as long as
# the gradient did not turn. So let the experts go farther, by the learning rate alone, and look at both: by what factor
# the estimate of the base's own gap misses, with true gradients (1 would be right, 2 is what a parabola gives), and
# how well the tasks are ordered under the average.
#
# > **Predict before you run.** Which breaks first as the experts get hotter: the order of the gaps, or that of the
# > changes? And will true gradients help where $-\tau_j$ fails?

# %%
from apgd_teach.figures import draw_heat, measure_heat, show

averages = {rate: merge(pool.base, pool.experts, "average") for rate, pool in pools.items()}
by_rate = {
    rate: estimates
    if pool is mild
    else estimated_gaps(
        pool.base,
        task_vectors(pool.base, pool.experts),
        {"average": averages[rate]},
        compare(pool, {"average": averages[rate]}, images=profile.test_images),
        gradients=gradients,
    )
    for rate, pool in pools.items()
}
heat = measure_heat(by_rate, label="average")
show(draw_heat(heat))

# %%
wrong = {
    rate: sum(
        (one.with_gradients["average"][task] < one.with_gradients["base"][task])
        != (one.measured["average"][task] < one.measured["base"][task])
        for task in titles
    )
    for rate, one in by_rate.items()
}
Table(
    (
        "learning rate",
        "mean ‖τ‖/‖θ₀‖ %",
        "longest step %",
        "base's gap",
        "its estimate",
        "average's gap",
        "its estimate",
        "wrong direction",
    ),
    [
        (
            f"{rate:g}",
            round(length(pools[rate], titles)),
            round(longest(averages[rate])),
            mean(of(one.measured, "base")),
            mean(of(one.with_gradients, "base")),
            mean(of(one.measured, "average")),
            mean(of(one.with_gradients, "average")),
            f"{wrong[rate]} of {len(titles)}",
        )
        for rate, one in by_rate.items()
    ],
    digits=3,
    caption="First-order estimates with true gradients beside the measured gaps (nats), mean over the tasks",
    note="Wrong direction: tasks that the line says the average helps and that it harms, or the other way round.",
)

# %%
hottest = max(pools)
say(
    f"The estimate of the base's gap is {heat.ratios[0]:.1f} times the gap for the gentlest experts and "
    f"{heat.ratios[-1]:.1f} times for the hottest. Without data, the gaps are ordered with {r(heat.gaps[0])} at the "
    f"gentle end and {r(heat.gaps[-1])} at the hot one, the changes with {r(heat.changes[0])} and "
    f"**{r(heat.changes[-1])}**. With true gradients the changes go from {r(heat.changes_with_gradients[0])} to "
    f"{r(heat.changes_with_gradients[-1])}: "
    + (
        "knowing the gradient does not help there. The straight line itself has broken, whatever $-\\tau$ is still "
        "worth. "
        if heat.changes_with_gradients[-1] < 0.5
        else "with the gradient the order survives, so it is the second link that broke. "
    )
    + "From gentle to hot, the order of the gaps without data reads "
    f"{', '.join(map(r, heat.gaps))}, that of the changes {', '.join(map(r, heat.changes))}: there is the answer to "
    f"which one breaks first. For the hottest experts the line has the direction wrong for {wrong[hottest]} of "
    f"{len(titles)} tasks.",
    holds={
        "the base's gap is overestimated more for the hottest experts than for the gentlest": heat.ratios[
            -1
        ]
        > heat.ratios[0]
        > 1,
        "without data, the changes are better ordered for the gentlest experts than for the hottest": heat.changes[
            0
        ]
        > heat.changes[-1],
    },
    facts={
        "04.gentle.changes": heat.changes[0],
        "04.hot.changes": heat.changes[-1],
        "04.gentle.ratio": heat.ratios[0],
        "04.hot.ratio": heat.ratios[-1],
    },
)

# %% [markdown]
# Of the two orders, a merge needs that of the changes. The rest of a gap is the base's own, there whatever is merged.
#
# ## Where it breaks: task vectors that know nothing of their task · in depth
#
# Back to the laboratory, where one more assumption can be taken away that nobody sees in a real network. For an expert
# at its target, $\theta_j = W_j$, the gap is known:
#
# $$L_j(\theta^*) - L_j(\theta_j) = \tfrac12 \operatorname{tr}\left[(M - \tau_j)\,C_j\,(M - \tau_j)^\top\right] .$$
#
# Write the surrogate `full` in the same way:
#
# $$\lVert R_j \rVert^2 = \operatorname{tr}\left[(M - \tau_j)\,\tau_j^\top\tau_j\,(M - \tau_j)^\top\right] .$$
#
# But for the half they differ in one place: $\tau_j^\top\tau_j$ stands where $C_j$ stood. So `full` is the gap as far
# as the task vector remembers which input directions its task uses. Gradient descent makes it remember: each step is
# $-a\,(W - W_j)\,C_j$, whose rows are made of the directions in $C_j$, the few strong ones first. But train for ever,
# and $\tau_j = W_j - \theta_0$ whatever $C_j$ is: the many weak directions have caught up.
#
# The settings of the figure are *as it is*, ten steps of gradient descent; *trained for ever*; and *nothing in common*,
# in which, beside that, $C_j$ was drawn at random. Weights are 16 × 16 here. The optima are what is best with $C_j$
# known; the two *projected* ones leave a subspace alone, which is the matter of the next two lessons.
#
# > **Predict before you run.** In which settings does `full` close more of the gap than the average, in which less?

# %%
from apgd_teach.figures import draw_gap_closed, measure_gap_closed
from apgd_teach.figures.laboratory import SETTINGS

DRAWS = 20
measured = measure_gap_closed(range(DRAWS))
panel(
    lambda setting: draw_gap_closed(measured, setting=setting),
    title="How much of the base's gap is closed",
    static=[{"setting": one} for one in SETTINGS],
    setting=Slider("laboratory", list(SETTINGS)),
)

# %%
from statistics import median

ahead = {
    setting: sum(full > plain for full, plain in zip(found["full"], found["average"], strict=True))
    for setting, found in measured.shares.items()
}
middle = {
    setting: {name: 100 * median(each) for name, each in found.items()}
    for setting, found in measured.shares.items()
}
say(
    f"`full` closes more of the gap than the average in {ahead['as it is']} of {DRAWS} draws as it is, in "
    f"{ahead['trained for ever']} when trained for ever, and in {ahead['nothing in common']} with nothing in common. "
    "There "
    f"its median is {middle['nothing in common']['full']:.0f} %".replace("-", "−")
    + (", worse than no merge at all" if middle["nothing in common"]["full"] < 0 else "")
    + f", and the average's {middle['nothing in common']['average']:.0f} %. Formula and solver are the same; what is "
    "missing is what the task vectors knew. The average never asked for it.",
    holds={
        "as it is, `full` beats the average in every draw": ahead["as it is"] == DRAWS,
        "with nothing in common, the average beats `full` in every draw": ahead["nothing in common"]
        == 0,
        "as it is, `full` closes more than 90 % in the median": middle["as it is"]["full"] > 90,
        "with nothing in common, the average closes more than row and full in the median": middle[
            "nothing in common"
        ]["average"]
        > max(middle["nothing in common"][one] for one in ("row", "full")),
    },
    facts={"04.laboratory.full": middle["as it is"]["full"]},
)

# %% [markdown]
# ## In practice: what "no data" means here
#
# The forecast above was computed in the notebook, which had images at hand. To be sure that none went in, compute it
# where data cannot be had: inside a merge, under the guard of lesson 02. A method may leave numbers in the audit, so
# here is the average once more, as a method that uses your function.

# %%
from dataclasses import dataclass
from typing import ClassVar

from apgd_teach.merging import Update


@dataclass(frozen=True)
class Forecast:
    """The average, with the estimate of every task's gap in this layer in the audit."""

    name: ClassVar[str] = "average with a forecast"

    def __call__(self, task_vectors):
        update = task_vectors.mean(dim=0)
        return Update(update, {"forecast": tuple(estimated_gap(task_vectors, update).tolist())})


audit = merge(mild.base, mild.experts, Forecast()).audit
inside = {
    task: sum(row.facts["forecast"][place] for row in audit.rows if row.policy == "merge")
    for place, task in enumerate(audit.experts)
}
theirs = torch.tensor([inside[task] for task in vectors])
torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6, check_dtype=False)
f"the same {len(inside)} numbers, data used: {audit.data_used}"

# %% [markdown]
# Every merge of the library does so unasked: `gap left` in `audit.tasks()` is the estimate, as a share of the base's.
# Data did go into the experts, and their owners had it. "No data" means that nobody needs it again in order to merge.
#
# ## In practice: when not to trust it
#
# The audit warns of a step that is longer than half of what it starts from: an estimate made at the base says little
# about a place so far away.

# %%
from apgd_teach.merging.audit import LONG_STEP

tried = {
    **{f"{label} (mild)": network for label, network in merges.items()},
    "average (hot)": averages[hot.recipe.lr],
}
warned = [label for label, network in tried.items() if network.audit.long_steps]
hot_gaps = by_rate[hot.recipe.lr].measured
worse = {
    **{f"{label} (mild)": still_open[label] > 100 for label in merges},
    "average (hot)": mean(of(hot_gaps, "average")) > mean(of(hot_gaps, "base")),
}
Table(
    ("merge", "longest step ‖M‖/‖θ₀‖ %", "the audit", "measured"),
    [
        (
            label,
            round(longest(network)),
            "warns" if label in warned else "says nothing",
            f"{'larger' if worse[label] else 'smaller'} gap than the base's",
        )
        for label, network in tried.items()
    ],
    caption="What the audit says before, and what was measured afterwards",
)

# %%
silent = [label for label in tried if worse[label] and label not in warned]
alarmed = [label for label in warned if not worse[label]]
say(
    f"It warns of {len(warned)} of these {len(tried)}: {'; '.join(warned) or 'none'}. "
    + (
        f"And it is silent about {'; '.join(silent)}, where the gap became larger than the base's. "
        if silent
        else "It is silent about none whose gap became larger than the base's. "
    )
    + (
        f"Its warning of {'; '.join(alarmed)} was a false alarm by that measure. "
        if alarmed
        else ""
    )
    + "A warning is a reason to measure, and silence is no reason not to. `benchmarks/steps.md`, in the "
    "course's repository, counts both over many merges."
    + (f"\n\nIts words on {warned[0]}: *{tried[warned[0]].audit.findings[-1]}*." if warned else ""),
    holds={
        "a step longer than the audit's limit is warned of": all(
            (longest(network) > 100 * LONG_STEP) == (label in warned)
            for label, network in tried.items()
        )
    },
)

# %% [markdown]
# Before you believe a forecast about checkpoints of your own, ask for three things that need no data: how far did the
# experts go (lesson 02's $\lVert\tau\rVert/\lVert\theta_0\rVert$)? How long is the merge's step? And how were they
# made: few steps of SGD, or so long and with such an optimiser that the task vector has little of a gradient left? Then
# measure the merged network on whatever data there is; the forecast says on which tasks to look first.
#
# ## What this run showed

# %%
shown = heat.changes[0] > 0.5 and heat.ratios[-1] > heat.ratios[0]
say(
    "**The gap can be estimated without data, and where that estimate breaks: "
    f"{'shown' if shown else 'not shown in this run'}.**\n\n"
    f"**It works near the base.** From the weights of gently fine-tuned experts alone (‖τ‖ is "
    f"{length(gentle, titles):.0f} % of ‖θ₀‖) the tasks are ordered by what averaging changes for them with a rank "
    f"correlation of {r(heat.changes[0])}, and those of mild experts ({length(mild, titles):.0f} %) with "
    f"{r(changed)}. As a number it is wrong even there: with true gradients the base's gap comes out "
    f"{heat.ratios[0]:.1f} times as large as it is; a parabola explains a factor of up to two.\n\n"
    "**It breaks in five places.**\n\n"
    f"* Other merges: for the other {len(agreement) - 1} merges of the mild experts the order of the changes is met "
    f"with {r(min(one[2] for name, one in agreement.items() if name != 'average'))} to "
    f"{r(max(one[2] for name, one in agreement.items() if name != 'average'))}.\n"
    f"* Hot experts ({length(hot, titles):.0f} % of ‖θ₀‖): the order of the changes is down to "
    f"{r(heat.changes[-1])}, and the estimate of the base's gap is {heat.ratios[-1]:.1f} times the gap.\n"
    f"* Long steps: the line falls for ever, while the measured gap is lowest {lowest['mild']['at']} for mild "
    f"experts and {lowest['hot']['at']} for hot ones.\n"
    f"* Between merges: over six of them its rank correlation with the measured gap is {r(order['estimate'])}.\n"
    f"* Task vectors that know nothing of their task: `full` loses to the average in "
    f"{DRAWS - ahead['nothing in common']} of {DRAWS} laboratories.\n\n"
    "All this is one seed, one base and eight tasks of two families, and a rank correlation over eight numbers.",
    holds={"the headline": shown},
)

# %% [markdown]
# ## Recap
#
# * The gap of task $j$ is estimated in links: a straight line for the loss, $\langle\nabla L_j(\theta_0), M - \tau_j
#   \rangle$; then $-\tau_j$ for the gradient; then a residual $R_j = (M - \tau_j)\,\tau_j^\top$ that is to vanish.
# * The first link is good near the base and overestimates beyond: on a parabola, and for an expert that was trained to
#   the end, it makes the base's own gap twice what it is.
# * The second link costs the unit and part of the direction. It needs experts whose fine-tuning was little more than a
#   walk down the first gradient.
# * The third one turns a quantity without a bottom into one that can be minimised: `layer`, `row` or `full`, each of
#   which bounds the one before. `full` is the loss itself where $\tau_j^\top\tau_j$ remembers the task's inputs, and
#   worthless where it does not.
#
# ## Try it
#
# 1. Forecast before you measure: choose two tasks `a, b` and average only their experts, `two = mild.only([a, b])`.
#    Estimate both gaps with your function, write down which is larger, then `compare(two, {"average": …})`.
# 2. Make the laboratory's tasks overlap: `make_laboratory(overlap=0.9)`. Is the factor of the base's gap still between
#    one and two? What happens to the shares that average and `full` close, and why do both change?
# 3. AdamW's task vectors were tried for their cosine only. Make all eight experts, `pool_of("mild",
#    optimizer="adamw")`, and put them through `estimated_gaps`. Is the order of the changes worse, as the cosine would
#    have it?
# 4. Train the experts longer at the gentle rate: `pool_of(Recipe("sgd", 0.01, steps=4 * profile.expert_steps))`. Is it
#    the rate or the way gone, ‖τ‖, that breaks the order of the changes?
#
# **Next:** [05 · The shared subspace](05_shared_subspace.ipynb).
#
# *References.* The first-order view of merging, the residual and its `row` form: Wei et al., "Modeling Multi-Task Model
# Merging as Adaptive Projective Gradient Descent", ICML 2025, [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). The
# `full` form: Cheng et al., "Whoever Started the Interference Should End It", ICML 2025,
# [arXiv 2503.08099](https://arxiv.org/abs/2503.08099). AdamW: Loshchilov and Hutter, ICLR 2019,
# [arXiv 1711.05101](https://arxiv.org/abs/1711.05101).
