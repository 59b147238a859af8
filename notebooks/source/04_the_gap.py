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
from functools import partial

from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool

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

# %%
from apgd_teach.lessons import problem

header("04")

# %% [markdown]
# ## What a merge would have to know
#
# Lesson 02 measured what the user of task $j$ loses by the merge, the gap $L_j(\theta^*) - L_j(\theta_j)$, on test
# images. A merge has only $\theta_0$ and the experts $\theta_1, \dots, \theta_T$. Can these say how large each task's
# gap is? A chain of three replacements leads there. The first is tried where every right answer is known; then all of
# it is held against real experts.
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
# directions the task uses, and how much. Base and experts are weights $W$; an expert is what some steps of gradient
# descent make of the base.

# %% [markdown]
# ### The laboratory drawn · in depth
#
# The smallest such laboratory has two tasks and two weights, so that all of it can be drawn. Light is a low total loss
# of the two tasks. The circle is the base, the triangles are the experts, the blue square is their average, and the
# star is the lowest total loss there is: where the two tasks' valleys cross, which may be far outside, since each
# expert moved only along the input directions that its own task uses. No merge knows it, since it takes both $C_j$ to
# compute it. The orange path starts at S, a weighted sum of the task vectors near the average, and belongs to a merge
# that sees base and experts only: each of its steps makes something smaller that stands for the gaps. This lesson
# derives it; lesson 06 takes the path step by step.
#
# > **Predict before you run.** Which will end nearer the star, the average or the path?

# %%
from apgd_teach.figures import Slider, draw_laboratory, measure_laboratory, panel
from apgd_teach.merging import make_laboratory

plane = measure_laboratory(
    make_laboratory(n_tasks=2, out=1, in_=2, distance=1.0, seed=SEED), steps=12
)
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
# And on the way from the base to an expert: the loss, a straight line with its slope at the base, and the parabola with
# its curvature there, which in this laboratory is the loss itself. The first link below is about that line.

# %%
from apgd_teach.figures import draw_along, laboratory_along
from apgd_teach.figures.laboratory import TRAINED

walks = {}
for name, steps in TRAINED.items():
    one = make_laboratory(n_tasks=2, out=1, in_=2, distance=1.0, seed=SEED, steps=steps)
    walks[name] = laboratory_along(one, one.tuned[0], end="the expert of task 0")
panel(
    lambda trained: draw_along(walks[trained], share=1.0, task="task 0"),
    title="From the base to an expert",
    static=[{"trained": "1 step"}, {"trained": "ever"}],
    trained=Slider("expert trained for", list(walks)),
)

# %% [markdown]
# ## First link: a straight line for the loss
#
# Write $M = \theta^* - \theta_0$ for the step of the merge and $\tau_j = \theta_j - \theta_0$ for that of the expert.
# Expand the loss around $\theta_0$. $\langle A, B \rangle$ is the sum of the products of the entries of $A$ and $B$,
# and $\nabla L_j(\theta_0)$ the gradient of the loss at the base:
#
# $$L_j(\theta_0 + M) = L_j(\theta_0) + \langle \nabla L_j(\theta_0), M \rangle + \text{terms of second and higher
# order in } M,$$
#
# and the same with $\tau_j$ in place of $M$. The first is the merged network's loss, the second the expert's. Subtract,
# and leave the higher terms out:
#
# $$L_j(\theta^*) - L_j(\theta_j) \approx \langle \nabla L_j(\theta_0),\, M - \tau_j \rangle .$$
#
# How wrong is that? Take the base's own gap ($M = 0$) in the laboratory, for an expert trained until nothing changed,
# $\theta_j = W_j$. The gradient of the loss is $(W - W_j)\,C_j$; at the base $W - W_j = -\tau_j$, so
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
# Exactly twice the true gap: a straight line with the slope that a parabola has at the base falls twice as far.
#
# > **Predict before you run.** That expert stood at the bottom of its parabola. If it stops after a single step, is the
# > estimate still twice the true gap, more, or less?

# %%
from apgd_teach.figures import measure_overestimates

measure_overestimates(seed=SEED).table()

# %% [markdown]
# An expert that went the share $f$ of the way to the bottom is overestimated by the factor $1/(1 - f/2)$: by one if it
# hardly moved, by two if it went all the way. One factor for all tasks would leave their order right; this one grows
# with how far each expert went.
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
# points, $-\tau_j$ is the gradient at the base times an unknown positive number. Put it in:
#
# $$L_j(\theta^*) - L_j(\theta_j) \;\propto\; -\langle \tau_j,\, M - \tau_j \rangle .$$
#
# No data is left in it. Its unit is a squared weight, not the nat, so it cannot say how large a gap is; and the unknown
# number is each task's own, so it can say which task's is larger only as far as these are alike. Whether they are is
# measured next.

# %%
problem("04.1")


# %% tags=["exercise"]
def estimated_gap(task_vectors, update):
    # your code: begin
    return -(task_vectors * (update - task_vectors)).sum(dim=(1, 2))
    # your code: end


problem("04.1").check(estimated_gap)

# %% [markdown] tags=["solution"]
# Entry by entry, added up over rows and columns; a network's estimate is the sum over its layers.

# %%
estimated_gap = problem("04.1").use(estimated_gap)

# %% [markdown]
# ## Real experts: predicted against measured
#
# Six merges of the mild experts: four methods of lesson 03, as they come, and two, *the paper* and *full residual*,
# which minimise the residual of the next section (the settings of *the paper* are explained in lessons 05 and 06).
# Your function forecasts the gaps under the average. (The audit of every merge has such a forecast: `gap left` in
# `audit.tasks()`.)

# %%
from apgd_teach.figures import merged_layers
from apgd_teach.merging import PAPER, TaskArithmetic, merge, task_vectors
from apgd_teach.tables import Table

mild, hot = pool_of(regime="mild"), pool_of(regime="hot")
titles = {name: task.title for name, task in mild.tasks.items()}
vectors = task_vectors(mild.base, mild.experts)
methods = {
    "average": "average",
    "task arithmetic, λ = 0.3": TaskArithmetic(0.3),
    "TIES": "ties",
    "TSV-M": "tsv_m",
    "the paper": PAPER,
    "full residual": "wudi",
}
merges = {label: merge(mild.base, mild.experts, method) for label, method in methods.items()}
forecast = sum(
    estimated_gap(stack, update)
    for stack, update in merged_layers(mild.base, vectors, merges["average"]).values()
)
Table(
    ("task", "your estimate of the gap under the average"),
    [(titles[task], gap) for task, gap in zip(vectors, forecast, strict=True)],
    digits=2,
    note="In squared units of weight, summed over the layers that are merged; biases are left out.",
)

# %% [markdown]
# > **Predict before you run.** Which two tasks will have the largest measured gap? And will the eight tasks come in the
# > order of your estimates?

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import Slider, draw_estimate, loss_gradients, measure_estimates, panel

# All pools of this lesson have one base, and so one gradient per task at it.
gradients = loss_gradients(Evaluator(mild, images=profile.test_images), mild.base)
estimates_of = partial(measure_estimates, images=profile.test_images, gradients=gradients)
estimates = estimates_of(mild, merges)
panel(
    lambda network: draw_estimate(estimates, label=network),
    title="The gap, estimated and measured",
    static=[{"network": "average"}, {"network": "the paper"}],
    network=Slider("mild experts, merged by", list(merges)),
)

# %% [markdown]
# On the left the estimate without data, where only the order of the tasks counts; on the right with the true gradients,
# where a perfect estimate would lie on the dotted line. The **rank correlation** is 1 where both sides have the tasks
# in the same order, −1 where one is the other reversed.
#
# Part of the order is no news: at the base the estimate is $\lVert\tau_j\rVert^2$, so who went far is expected to lose
# much. What the *merge* does is the change from the base, $L_j(\theta^*) - L_j(\theta_0)$. It is estimated by
# $\langle\nabla L_j(\theta_0), M\rangle$, without data by $-\langle\tau_j, M\rangle$: the last column. Eight tasks are
# few: in brackets stands the share of all orders that do at least as well.

# %%
from apgd_teach.figures import forecast_table, measure_forecasts, spearman

forecasts = measure_forecasts(estimates)
forecast_table(forecasts)

# %%
average, paper = forecasts["average"], forecasts["the paper"]
changed = {label: one.changes for label, one in forecasts.items() if label != "average"}
orders, weakest = list(changed.values()), min(changed, key=changed.get)
lengths = list(estimates.data_free["base"].values())
measured = list(estimates.measured["average"].values())
gained = [
    before - now for before, now in zip(estimates.measured["base"].values(), measured, strict=True)
]
left = [(one.estimate, one.gap) for one in forecasts.values()]
between = spearman(*zip(*left, strict=True))


def r(value):
    """A correlation or a gap in writing."""
    return f"{value:.2f}".replace("-", "−")


def two_largest(gaps):
    """The titles of the two tasks with the largest gaps."""
    return " and ".join(f"*{titles[task]}*" for task in sorted(gaps, key=gaps.get)[:-3:-1])


say(
    f"The largest gaps under the average have {two_largest(estimates.measured['average'])}; by the estimate it would "
    f"be {two_largest(estimates.data_free['average'])}. Under the average the estimate orders the gaps of all eight "
    f"with **{r(average.gaps)}**, the lengths $\\lVert\\tau_j\\rVert^2$ "
    f"alone with {r(spearman(lengths, measured))}; what the average changes it orders with **{r(average.changes)}**, "
    f"the lengths alone with {r(spearman(lengths, gained))}. For the other merges that number lies between "
    f"{r(min(orders))} and {r(max(orders))}: what holds for one merge need not hold for the next. And between the six "
    f"merges, what is left of the estimate and of the gap agree with {r(between)}: it does not order them. *The "
    f"paper* leaves {100 * paper.estimate:.0f} % of the estimate and {100 * paper.gap:.0f} % of the gap, the average "
    f"{100 * average.estimate:.0f} % and {100 * average.gap:.0f} %.",
    holds={
        "under the average order is better than luck": min(average.gaps, average.changes) > 0.3,
        "the estimate does not give the order of the merges": between < 0.8,
    },
    facts={"04.mild.gaps": average.gaps, "04.mild.changes": average.changes},
)

# %% [markdown]
# ## Third link: a residual that vanishes
#
# The estimate is linear in $M$: in a direction along $\tau_j$ it falls for ever, so its smallest value is no aim. Ask
# for an $M$ at which the estimated gap of every task is **zero** instead. With
# $\langle A, B\rangle = \operatorname{tr}(A B^\top)$ it is a trace,
#
# $$-\langle \tau_j,\, M - \tau_j \rangle = -\operatorname{tr} R_j, \qquad R_j = (M - \tau_j)\,\tau_j^\top ,$$
#
# of the **residual** $R_j$, a matrix with a row and a column for each of the layer's $d$ outputs: how $M$ differs from
# $\tau_j$, seen along the input directions that $\tau_j$ itself uses. How much of it is to be zero is a choice, the
# *granularity*:
#
# | granularity | what is to vanish | in words |
# |---|---|---|
# | `layer` | $(\operatorname{tr} R_j)^2$ | the estimate itself: one number per layer, in which rows may cancel |
# | `row` | $\lVert\operatorname{diag} R_j\rVert^2$ | one number per output unit, as in the paper's public code |
# | `full` | $\lVert R_j\rVert^2$ | every entry |
#
# Each is a **surrogate** of the gap: it can be made small without data. *The paper* minimises `row` (with a constraint
# and a trim: lessons 05 and 06), *full residual* `full`. Lesson 06 goes down both.

# %% [markdown]
# ### What merges leave of the surrogates · in depth

# %%
problem("04.2")


# %% tags=["exercise"]
def row_surrogate(task_vector, update):
    # your code: begin
    return float(((update - task_vector) * task_vector).sum(dim=1).square().sum())
    # your code: end


problem("04.2").check(row_surrogate)

# %% [markdown] tags=["solution"]
# The diagonal of $(M - \tau)\tau^\top$ holds each row's products with itself: no $d \times d$ matrix is needed.

# %%
row_surrogate = problem("04.2").use(row_surrogate)

# %% [markdown]
# Each surrogate bounds the one before: the trace is the diagonal times a vector of $d$ ones, of length $\sqrt d$, and a
# product of two vectors is at most that of their lengths; the diagonal is part of the matrix:
#
# $$(\operatorname{tr} R_j)^2 \le d\,\lVert\operatorname{diag} R_j\rVert^2 \le d\,\lVert R_j\rVert^2 .$$
#
# And `full` has a meaning of its own: $\lVert R_j\rVert^2 = \operatorname{tr}[(M - \tau_j)\,\tau_j^\top\tau_j\,
# (M - \tau_j)^\top]$ is, but for the half, the laboratory's gap with $\tau_j^\top\tau_j$ in the place of $C_j$. The
# bounds on the real layers, under the average of the mild experts:

# %%
import torch
from apgd_teach.figures import measure_surrogates
from apgd_teach.merging.surrogate import GRANULARITIES

surrogates = measure_surrogates(mild.base, vectors, merges)
for layer, (stack, update) in merged_layers(mild.base, vectors, merges["average"]).items():
    rows = [row_surrogate(tau, update) for tau in stack]
    theirs = surrogates.values["average"][layer]["row"]
    torch.testing.assert_close(torch.tensor(rows).double(), theirs, rtol=1e-3, atol=1e-9)
surrogates.bounds("average")

# %% [markdown]
# Now all merges: what each leaves of the three, as shares of what they are at the base, and what it leaves of the gap,
# measured.
#
# > **Predict before you run.** A merge that makes `row` small: what does it do to `full`, of which `row` is a part?

# %%
left = {label: surrogates.left(label) for label in merges}
gap_left = {label: 100 * one.gap for label, one in forecasts.items()}
Table(
    ("merge", *GRANULARITIES, "measured gap"),
    [(label, *map(round, (*left[label].values(), gap_left[label]))) for label in merges],
    caption="What each merge leaves, in per cent of the base's",
    note="Measured gap: mean over the tasks, test images.",
)

# %%
order = {
    name: spearman([each[name] for each in left.values()], list(gap_left.values()))
    for name in GRANULARITIES
}
row_one, full_one = left["the paper"], left["full residual"]
say(
    "Does less of a surrogate mean less of a gap? Over the six merges the rank correlation with the measured gap is "
    f"{r(order['layer'])} for `layer`, {r(order['row'])} for `row` and {r(order['full'])} for `full` (six merges are "
    f"few).\n\nThe paper's merge leaves {row_one['row']:.0f} % of `row` and {row_one['full']:.0f} % of `full`"
    + (
        ": it pays for small numbers on the diagonal with large ones beside it. "
        if row_one["full"] > 100
        else ". "
    )
    + f"It leaves {gap_left['the paper']:.0f} % of the gap, the average {gap_left['average']:.0f} %: here it "
    f"**{'loses to' if gap_left['the paper'] > gap_left['average'] else 'beats'}** plain averaging. *Full residual* "
    f"leaves {full_one['full']:.0f} % of `full` and {gap_left['full residual']:.0f} % of the gap.\n\n"
    "A surrogate gives a direction to descend in. It does not say how good the network is that one arrives at.",
    holds={
        "the paper's merge makes `row` smaller than the average does": row_one["row"]
        < left["average"]["row"],
        "the full residual's merge leaves less of `full` than any other": full_one["full"]
        <= min(each["full"] for each in left.values()),
    },
)

# %% [markdown]
# ## Where it breaks: a straight line has no bottom · in depth
#
# Along one direction, $M = s\,D$, the estimate is
#
# $$-\langle \tau_j,\, s D - \tau_j \rangle = \lVert\tau_j\rVert^2 - s\,\langle \tau_j, D \rangle :$$
#
# the longer the step, the better, down to a merged network that beats the task's own expert. The loss does something
# else. The figure shows the line, and the **parabola** with the loss's true curvature at the base: the next term of the
# expansion, which is as much a matter of the base's neighbourhood as the line is.
#
# > **Predict before you run.** The way goes from the base through the average, at a quarter of it, to half the sum of
# > all task vectors. Where will the measured gap be lowest, for the mild and for the hot experts?

# %%
from apgd_teach.figures import gap_along

ways = {}
for name, pool in (("mild", mild), ("hot", hot)):
    half = merge(pool.base, pool.experts, TaskArithmetic(0.5))
    ways[name] = gap_along(
        Evaluator(pool, images=profile.plane_images),
        pool.base,
        half.state_dict,
        points=profile.path_points,
        end="θ₀ + ½ Σ τ",
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
lines = {
    name: walked.mean[0] + sum(walked.slopes.values()) / len(titles)
    for name, walked in ways.items()
}
say(
    "\n".join(
        f"* **{name} experts**: the mean gap is lowest at {walked.steps[walked.mean.index(min(walked.mean))]:.2f} of "
        f"the way ({r(min(walked.mean))} nats; {r(walked.mean[0])} at the base, "
        f"{r(walked.mean[walked.steps.index(0.25)])} at the average, {r(walked.mean[-1])} at the end). The first-order "
        f"line promises {r(lines[name])} at the end."
        for name, walked in ways.items()
    )
    + f"\n\nMeans over the tasks, on the first {profile.plane_images:,} test images of each.",
    holds={
        "the first-order line promises less gap at the end than at the base": all(
            lines[name] < walked.mean[0] for name, walked in ways.items()
        ),
        "for hot experts the measured gap is lower before the end": ways["hot"].mean[-1]
        > min(ways["hot"].mean),
    },
)

# %% [markdown]
# ## Where it breaks: the hotter the fine-tuning
#
# The line is a tangent at the base, and $-\tau_j$ is like the gradient only as long as the gradient did not turn. So
# let the experts go farther, by the learning rate alone. By what factor does the estimate of the base's own gap miss,
# with true gradients, and how well are the tasks ordered under the average?
#
# > **Predict before you run.** Which breaks first as the experts get hotter: the order of the gaps, or that of the
# > changes? And will true gradients help where $-\tau_j$ fails?

# %%
from apgd_teach.figures import draw_heat, measure_heat, show
from apgd_teach.training import Recipe

RATES = (0.01, 0.08)[: profile.heat_rates]  # beside mild and hot
beside = [pool_of(regime=Recipe("sgd", rate, steps=profile.expert_steps)) for rate in RATES]
by_rate = {mild.recipe.lr: estimates}
for pool in (*beside, hot):
    averaged = {"average": merge(pool.base, pool.experts, "average")}
    by_rate[pool.recipe.lr] = estimates_of(pool, averaged)
heat = measure_heat(by_rate, label="average")
show(draw_heat(heat))

# %%
without, line = heat.changes, heat.changes_with_gradients
say(
    f"The estimate of the base's gap is {heat.ratios[0]:.1f} times the gap for the gentlest experts and "
    f"{heat.ratios[-1]:.1f} times for the hottest. From gentle to hot, the order of the gaps without data reads "
    f"{', '.join(map(r, heat.gaps))}, that of the changes {', '.join(map(r, without))}: of the two the "
    f"{'changes have' if without[0] - without[-1] > heat.gaps[0] - heat.gaps[-1] else 'gaps have'} lost more. With "
    f"true gradients the order of the changes ends at **{r(line[-1])}**: "
    + (
        "knowing the gradient does not help. The straight line itself has broken"
        if line[-1] < 0.5
        else "with the gradient the order survives. It is the second link that broke"
    )
    + f". For {heat.wrong[-1]} of {len(titles)} tasks the line has the direction wrong there.",
    holds={
        "the hotter, the more is overestimated": heat.ratios[-1] > heat.ratios[0] > 1,
        "the hotter, the worse the order of the changes without data": without[0] > without[-1],
    },
    facts={"04.gentle.changes": without[0], "04.hot.changes": without[-1]},
)

# %% [markdown]
# ### The same in numbers · in depth

# %%
heat.table()

# %% [markdown]
# ### How much of a gradient is a task vector? · in depth
#
# In the laboratory, of which a larger one stands here, the sum $\tau_j = -a \sum_k \nabla L_j(\theta^{(k)})$ can be
# checked to the last digit; and how far the gradient turned on the way is the cosine between $-\tau_j$ and
# $\nabla L_j(\theta_0)$. One means the same direction, zero a right angle.

# %%
from apgd_teach.figures import gradient_cosines

large = make_laboratory(out=16, in_=16, seed=SEED)
way = large.path(0, large.steps)
summed = sum(large.gradient(0, place) for place in way[:-1])
torch.testing.assert_close(large.task_vectors[0], -large.lr * summed)
turned = gradient_cosines(
    {"task": {"weight": large.task_vectors[0]}}, {"task": {"weight": large.gradient(0, way[0])}}
)["weight"]
say(
    f"τ is the sum of {large.steps} steps, to the last digit. The cosine of −τ and the gradient at the base is "
    f"{turned:.2f}: here the gradient becomes shorter on the way and hardly turns, since the few directions that "
    "a task uses here count alike, and all others next to nothing.",
    holds={"in the laboratory the gradient hardly turns": turned > 0.95},
)

# %% [markdown]
# Real experts have momentum, small batches and a loss that is no parabola. Beside the SGD experts stand three made by
# AdamW, which divides every entry of a step by the typical size of that entry's gradients. An entry whose gradients are
# tiny then moves about as far as one whose gradients are large, and a sum of such steps is no sum of gradients.
#
# > **Predict before you run.** Order them by that cosine: the gentlest, mild, hot, AdamW.

# %%
from apgd_teach.merging.statedict import relative_norm

SOME = ["digits-rotated45", "digits-inverted", "fashion-flipped"]
adamw = pool_of(regime="mild", optimizer="adamw", tasks=SOME)
by_sgd = sorted([*beside, mild, hot], key=lambda pool: pool.recipe.lr)
made = {f"SGD, {pool.recipe.lr:g}": pool for pool in by_sgd}
made[f"AdamW, {adamw.recipe.lr:g}"] = adamw
went, alike = {}, {}
for name, pool in made.items():
    went[name] = (
        100 * sum(relative_norm(pool.base, pool.experts[task]) for task in SOME) / len(SOME)
    )
    alike[name] = gradient_cosines(task_vectors(pool.base, pool.experts), gradients, SOME)
Table(
    ("optimiser, learning rate", "‖τ‖/‖θ₀‖ %", *next(iter(alike.values()))),
    [(name, went[name], *each.values()) for name, each in alike.items()],
    digits=2,
    caption="Cosine of −τ and the gradient at the base, by layer",
    note=f"Mean over three tasks: {'; '.join(titles[task] for task in SOME)}. Gradients on the first "
    f"{profile.test_images:,} test images of each.",
)

# %%
together = {name: each["all of them"] for name, each in alike.items()}
*sgd, by_adamw = together
near = min(sgd, key=lambda name: abs(went[name] - went[by_adamw]))
lower = sum(
    alike[by_adamw][layer] < cosine
    for layer, cosine in alike[near].items()
    if layer != "all of them"
)
say(
    f"The gentlest experts' −τ has a cosine of {r(together[sgd[0]])} with the gradient, the hot ones' "
    f"{r(together[sgd[-1]])}; two random directions of a million numbers have about 0.001. That is nothing like a "
    "random direction, and a long way from the gradient itself. From the largest cosine down: "
    f"{'; '.join(sorted(together, key=together.get, reverse=True))}.\n\n"
    f"AdamW's experts went {went[by_adamw]:.1f} % of ‖θ₀‖ and have {r(together[by_adamw])}. The SGD experts whose way "
    f"is nearest to that ({near}, {went[near]:.1f} %) have {r(together[near])}: over all weights together, AdamW's "
    f"task vector is **{'less' if together[by_adamw] < together[near] else 'no less'}** of a gradient than theirs; "
    f"layer by layer, in {lower} of {len(alike[near]) - 1}.",
    holds={
        "−τ of SGD's experts lies on the gradient's side": min(together[name] for name in sgd) > 0,
        "the hottest experts' −τ is less of a gradient than the gentlest ones'": together[sgd[-1]]
        < together[sgd[0]],
    },
)

# %% [markdown]
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
# in which, beside that, $C_j$ has no few strong directions, but is what a square matrix of random numbers makes of it.
# In the last two $\tau_j$ knows nothing of $C_j$; which is the worse of them is a matter of how $C_j$ was drawn.
# Weights are 16 × 16 here. The optima are what is best with $C_j$ known; the two *projected* ones leave a subspace
# alone, which is the matter of the next two lessons.
#
# > **Predict before you run.** In which settings does `full` close more of the gap than the average, in which less?

# %%
from apgd_teach.figures import draw_gap_closed, measure_gap_closed
from apgd_teach.figures.laboratory import SETTINGS

DRAWS = 20
shares = measure_gap_closed(range(DRAWS))
panel(
    lambda setting: draw_gap_closed(shares, setting=setting),
    title="How much of the base's gap is closed",
    static=[{"setting": one} for one in SETTINGS],
    setting=Slider("laboratory", list(SETTINGS)),
)

# %%
as_it_is, nothing = (shares.medians(setting) for setting in ("as it is", "nothing in common"))
ahead = [shares.ahead(setting) for setting in SETTINGS]
say(
    f"`full` closes more of the gap than the average in {ahead[0]} of {DRAWS} draws as it is, in {ahead[1]} when "
    f"trained for ever, and in {ahead[2]} with nothing in common. There its median is "
    + f"{100 * nothing['full']:.0f} %".replace("-", "−")
    + (", worse than no merge at all" if nothing["full"] < 0 else "")
    + f", and the average's {100 * nothing['average']:.0f} %. Formula and solver are the same; what is missing is what "
    "the task vectors knew. The average never asked for it.",
    holds={
        "as it is, `full` beats the average in every draw": ahead[0] == DRAWS,
        "with nothing in common, the average beats `full` in every draw": ahead[2] == 0,
        "as it is, `full` closes more than 90 % in the median": as_it_is["full"] > 0.9,
        "with nothing in common, the average closes more than row and full in the median": nothing[
            "average"
        ]
        > max(nothing["row"], nothing["full"]),
    },
    facts={"04.laboratory.full": 100 * as_it_is["full"]},
)

# %% [markdown]
# ## In practice: when not to trust it
#
# "No data" means that nobody needs it again in order to merge; it did go into the experts. The audit warns of a step
# longer than half of what it starts from; its silence is no reason not to measure. Before you believe a forecast, ask
# how far the experts went (lesson 02's $\lVert\tau\rVert/\lVert\theta_0\rVert$). Then measure, the tasks first that
# it names.
#
# ## What this run showed

# %%
tried = {**forecasts, "average of hot experts": measure_forecasts(by_rate[max(by_rate)])["average"]}
silent = [label for label, one in tried.items() if one.worse and not one.warned]
alarmed = [label for label, one in tried.items() if one.warned and not one.worse]
shown = without[0] > 0.5 and heat.ratios[-1] > heat.ratios[0]
say(
    "**Near the base the order of the tasks by what averaging changes for them can be estimated without data, and the "
    f"estimate breaks farther away: {'shown' if shown else 'not shown in this run'}.** The size of a gap cannot.\n\n"
    f"**It works near the base.** From the weights of gently fine-tuned experts alone (‖τ‖ is {heat.lengths[0]:.0f} % "
    "of ‖θ₀‖) the tasks are ordered by what averaging changes for them with a rank correlation of "
    f"{r(without[0])}. (The order of the gaps themselves is less of a feat: with mild experts the estimate has "
    f"{r(average.gaps)}, and the lengths ‖τ‖² alone have {r(spearman(lengths, measured))}.) As a number it is wrong "
    f"even there: with true gradients the base's gap comes out {heat.ratios[0]:.1f} times as large as it is; a "
    "parabola explains a factor of up to two.\n\n"
    "**Where it is weaker, or breaks.**\n\n"
    f"* Other merges of mild experts: for *{weakest}* the correlation is {r(changed[weakest])}, for the others "
    f"{r(sorted(orders)[1])} to {r(max(orders))}.\n"
    f"* Between merges: six of them are ordered with {r(between)}. The audit was silent where the gap became larger "
    f"than the base's ({'; '.join(silent) or 'nowhere'}), and warned where it did not "
    f"({'; '.join(alarmed) or 'nowhere'}).\n"
    f"* Hot experts ({heat.lengths[-1]:.0f} % of ‖θ₀‖): the order of the changes is down to {r(without[-1])}, and the "
    f"estimate of the base's gap is {heat.ratios[-1]:.1f} times the gap.\n\n"
    "All this is one seed, one base and eight tasks of two families, and a rank correlation over eight numbers.",
    holds={"the headline": shown},
)

# %% [markdown]
# ## Recap
#
# * The gap is estimated in links: a straight line for the loss, $\langle\nabla L_j(\theta_0), M - \tau_j \rangle$; then
#   $-\tau_j$ for the gradient, which costs the unit and part of the direction; then a residual
#   $R_j = (M - \tau_j)\,\tau_j^\top$ that is to vanish, as `layer`, `row` or `full`.
# * On a parabola the line makes the base's own gap up to twice what it is.
# * It breaks far from the base, between merges, and wherever a task vector has forgotten its task.

# %% [markdown]
# ## Try it · in depth
#
# 1. Forecast before you measure: choose two tasks `a, b` and average only their experts, `two = mild.only([a, b])`.
#    Estimate both gaps with your function, write down which is larger, then `compare(two, {"average": …})`.
# 2. Make the laboratory's tasks overlap: `make_laboratory(overlap=0.9)`. Is the factor of the base's gap still between
#    one and two? What happens to the shares that average and `full` close, and why do both change?
# 3. AdamW's task vectors were tried for their cosine only. Make all eight experts, `pool_of(regime="mild",
#    optimizer="adamw")`, and put them through `estimates_of`. Is the order of the changes worse, as the cosine would
#    have it?
# 4. Train the experts longer at the gentle rate: `pool_of(regime=Recipe("sgd", 0.01, steps=4 * profile.expert_steps))`.
#    Is it the rate or the way gone, ‖τ‖, that breaks the order of the changes?
#
# **Next:** [05 · The shared subspace](05_shared_subspace.ipynb).
#
# *References.* The first-order view of merging, the residual and its `row` form: Wei et al., "Modeling Multi-Task Model
# Merging as Adaptive Projective Gradient Descent", ICML 2025, [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). The
# `full` form: Cheng et al., "Whoever Started the Interference Should End It", ICML 2025,
# [arXiv 2503.08099](https://arxiv.org/abs/2503.08099). AdamW: Loshchilov and Hutter, ICLR 2019,
# [arXiv 1711.05101](https://arxiv.org/abs/1711.05101).
