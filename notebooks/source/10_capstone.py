# %% [markdown]
# # 10 · Capstone: one change, predicted, measured, explained
#
# **By the end you will have shown** what one change to a merging method is worth, having said beforehand what you
# expected, and why it came as it did. First once together, then with an idea of yours.
#
# *Before this:* [07 · An honest comparison](07_honest_comparison.ipynb). Everything else of the course helps.

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch

# %%
from functools import partial
from math import ceil

from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import TASKS, open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem
from apgd_teach.lessons.capstone import Prediction, Study, rubric

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)

# %% tags=["machine"]
header("10")

# %% [markdown]
# ## What a study is
#
# Four parts, in this order, and none of them is optional:
#
# 1. **Prediction.** A range of points and a reason, written down before anything is run. Without it every result looks
#    as if one had known.
# 2. **Change.** One thing. With two you cannot tell which one mattered.
# 3. **Measurement.** Paired by seed, with intervals, on seeds that chose nothing.
# 4. **Explanation.** Why it came so, and a second measurement that could have spoken against that reason.
#
# A study whose prediction failed can be a very good one. It is judged by this:

# %%
rubric()

# %% [markdown]
# ## The pools
#
# One pool to try things on, on its validation images only, and lesson 07's three seeds to report on. What the cache has
# is not trained again.

# %%
tasks = list(TASKS)[:: ceil(len(TASKS) / profile.compared_tasks)]
pool_of = partial(
    make_pool,
    tasks=tasks,
    regime="mild",
    base_steps=profile.base_steps,
    expert_steps=profile.compared_steps,
    source=source,
)
workshop = pool_of(seed=SEED)
pools = {seed: pool_of(seed=seed) for seed in (SEED + 10, SEED + 20, SEED + 30)}
say(f"{len(tasks)} tasks, to try on: seed {SEED}; to report on: {', '.join(map(str, pools))}.")

# %% [markdown]
# ## A study, once through
#
# **Question.** In the average a task with a long task vector counts more than one with a short one. Is the average
# better when every task counts by its direction alone?
#
# **Change.** Each $\tau_i$ of a layer is divided by its length, and the mean is multiplied by the mean length:
#
# $$M = \bar\ell \cdot \frac1T \sum_i \frac{\tau_i}{\lVert \tau_i \rVert}, \qquad
# \bar\ell = \frac1T \sum_i \lVert \tau_i \rVert .$$

# %%
problem("10.1")


# %% tags=["exercise"]
def same_length(tau):
    # your code: begin
    lengths = tau.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    return lengths.mean() * (tau / lengths).mean(dim=0)
    # your code: end


problem("10.1").check(same_length)

# %% [markdown]
# A method is a frozen dataclass with a name and one call, from $\tau$ (task, out, in) to $M$ (out, in). That is all it
# takes to stand beside the others, in memory, from files and in the comparison:

# %%
from dataclasses import dataclass
from typing import ClassVar

same_length = problem("10.1").use(same_length)


@dataclass(frozen=True)
class SameLength:
    name: ClassVar[str] = "same_length"

    def __call__(self, task_vectors):
        return same_length(task_vectors)


# %% [markdown]
# **Prediction.** How unequal are the lengths? That can be looked at without any image, and it is what the prediction
# rests on.

# %%
from apgd_teach.figures import draw_norms, layer_norms, show
from apgd_teach.merging import task_vectors

titles = {name: TASKS[name].title for name in tasks}
vectors = task_vectors(workshop.base, workshop.experts)
show(draw_norms(layer_norms(workshop.base, vectors), titles))

# %%
import torch

LAYER = "linear.weight"
lengths = {name: float(torch.linalg.matrix_norm(one[LAYER])) for name, one in vectors.items()}
longest, shortest = max(lengths, key=lengths.get), min(lengths, key=lengths.get)
say(
    f"In `{LAYER}` the longest task vector ({titles[longest]}) is {lengths[longest] / lengths[shortest]:.1f} times as "
    f"long as the shortest ({titles[shortest]})."
)

# %% [markdown]
# > **Predict before you run.** Between which two numbers of points will *same length* minus *average* lie, on average
# > over the tasks? Write your own into the next cell, with your reason, in place of ours. (A range narrower than the
# > interval that three seeds will give can only come out open: lesson 07 says how wide these are.)

# %%
prediction = Prediction(
    low=-1.5,
    high=1.5,
    because="what one task wins of the step another one loses",
)

# %% [markdown]
# **Measurement.** First on the pool to try things on: does the method run, and is its step about as long?

# %%
from apgd_teach.evaluate import compare
from apgd_teach.merging import Apgd, Average, merge
from apgd_teach.merging.statedict import relative_norm

METHODS = {"average": Average(), "same length": SameLength(), "apgd": Apgd()}
tried = {label: merge(workshop.base, workshop.experts, method) for label, method in METHODS.items()}
steps = {label: 100 * relative_norm(workshop.base, one.state_dict) for label, one in tried.items()}
say(
    "‖M‖ / ‖θ₀‖: "
    + "; ".join(f"{label} {step:.1f} %" for label, step in steps.items())
    + ". (The mean of vectors of equal length is shorter than they are, and how much depends on their angles.)"
)

# %%
compare(workshop, tried, images=profile.compared_images, split="validation").table()

# %% [markdown]
# Nothing was to be chosen here; had the method a setting, this is where it would be. Now the seeds that are reported:

# %%
from apgd_teach.trials import try_methods

trials = try_methods(pools, METHODS, images=profile.compared_images, title="mild experts")
trials.standing(bold=("same length",))

# %%
from apgd_teach.figures import Slider, draw_methods, panel

named = {"all tasks": "all", **{title: task for task, title in titles.items()}}
panel(
    lambda seed, task: draw_methods(trials.compared[seed], task=named[task]),
    title="The change, seed by seed and task by task",
    static=[{"seed": seed} for seed in list(pools)[:2]],
    seed=Slider("seed", list(pools)),
    task=Slider("task", list(named)),
)

# %% [markdown]
# **Explanation.** If length is the reason for whatever came, then tasks with a *short* task vector must have gained
# (they count more than before) and those with a long one lost. That can be measured: at each seed the rank
# correlation, over the tasks, of ‖τ‖ with the points that the task gained. At −1 the shortest gained most; at +1 the
# reason is wrong.

# %%
from apgd_teach.figures.gaps import spearman
from apgd_teach.tables import Table

rows, correlations = [], []
for seed, pool in pools.items():
    length = {
        name: float(one[LAYER].norm())
        for name, one in task_vectors(pool.base, pool.experts).items()
    }
    scores = trials.compared[seed].merged
    gained = {
        name: scores["same length"][name].accuracy - scores["average"][name].accuracy
        for name in tasks
    }
    correlations.append(spearman(list(length.values()), list(gained.values())))
    rows += [
        (seed, titles[name], f"{length[name]:.3f}", f"{gained[name]:+.1f}".replace("-", "−"))
        for name in tasks
    ]
Table(
    ("seed", "task", f"‖τ‖ of {LAYER}", "gained, points"),
    rows,
    caption="Do short task vectors gain?",
)

# %%
difference = trials.against("same length", "average")
known = [one for one in correlations if one == one]
said = ", ".join(f"{one:+.2f}".replace("-", "−") for one in known) or "none"
speaks = (
    "no difference was seen, so there is little to explain"
    if difference.verdict == "no difference seen"
    else "at every seed the short ones gained, as the reason says"
    if len(known) == len(pools) and max(known) < 0
    else "at every seed the long ones gained, against the reason"
    if len(known) == len(pools) and min(known) > 0
    else "the seeds do not agree, so it says nothing"
)
study = Study(
    question="Is the average better when every task counts by its direction alone?",
    change="each task vector of a layer gets the mean length; everything else is the average's",
    prediction=prediction,
    found=difference,
    explanation=f"rank correlation of length and gain over the tasks, seed by seed: {said}; {speaks}",
)
study.table()

# %% [markdown]
# ## How many ideas were tried?
#
# Whoever tries many ideas finds a winner, even if none of them does anything. How soon?

# %%
problem("10.2")


# %% tags=["exercise"]
def by_chance(n):
    # your code: begin
    return 1 - (1 - 0.025) ** n
    # your code: end


problem("10.2").check(by_chance)

# %%
by_chance = problem("10.2").use(by_chance)
half = next(n for n in range(1, 1000) if by_chance(n) > 0.5)
say(
    f"With one idea: {100 * by_chance(1):.1f} %. With five: {100 * by_chance(5):.0f} %. From {half} ideas that do "
    "nothing on, a false winner is more likely than none. (Ideas that are scored on the same seeds are not quite "
    "independent, so these are rough.) So a study says how many were tried, and a winner among many is tried again on "
    "new seeds.",
    holds={"a few dozen ideas make a false winner likely": half < 60},
)

# %% [markdown]
# ## Your study
#
# Take one of the ideas below or one of your own. Write it into the cell after the ideas, look at it on validation
# images of the pool to try things on, write down your prediction, and only then measure, on seeds that this notebook
# has not looked at yet (their pools are trained when they are needed, which takes as long as lesson 07's did).
#
# **1 · Experts that agree count more.** Those whose direction is close to the mean's get more weight.
#
# ```python
# def mine(tau):
#     flat = tau.flatten(1)
#     weight = torch.cosine_similarity(flat, flat.mean(dim=0, keepdim=True)).clamp_min(0)
#     return torch.einsum("t,toi->oi", weight / weight.sum(), tau)
# ```
#
# **2 · Less noise first.** Of each task vector the strongest quarter of its directions (lesson 05).
#
# ```python
# def mine(tau):
#     U, s, Vt = torch.linalg.svd(tau, full_matrices=False)
#     k = max(1, s.shape[1] // 4)
#     return ((U[:, :, :k] * s[:, None, :k]) @ Vt[:, :k]).mean(dim=0)
# ```
#
# **3 · The middle expert.** Entry by entry the median in place of the mean: no single expert can pull it far.
#
# ```python
# def mine(tau):
#     return tau.quantile(0.5, dim=0)
# ```
#
# **4 · Careful where they disagree.** The average's step of a layer, shortened to the share of the task vectors' length
# that is left when they are added up (lesson 03).
#
# ```python
# def mine(tau):
#     left = tau.sum(dim=0).norm() / tau.flatten(1).norm(dim=1).sum()
#     return left * tau.mean(dim=0)
# ```
#
# **5 · Is `apgd` too careful?** Its limit twice as far (lesson 06): no function, but a setting, and another reference,
# `REFERENCE = "apgd"`.
#
# ```python
# my_method = Apgd(reach=2 * Apgd().reach)
# ```

# %%
REFERENCE = "average"


def mine(tau):
    """The learner's own update of a layer; the average's until then."""
    return tau.mean(dim=0)


@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"

    def __call__(self, task_vectors):
        return mine(task_vectors)


my_method = Mine()
compare(
    workshop,
    {**tried, "mine": merge(workshop.base, workshop.experts, my_method)},
    images=profile.compared_images,
    split="validation",
).table()

# %%
my_prediction = None  # Prediction(low=…, high=…, because="…")
if my_prediction is not None:
    my_pools = {seed: pool_of(seed=seed) for seed in (SEED + 40, SEED + 50, SEED + 60)}
    my_trials = try_methods(
        my_pools, {**METHODS, "mine": my_method}, images=profile.compared_images, title="mine"
    )
my_trials.standing(bold=("mine",)) if my_prediction else "No prediction yet: nothing was run."

# %% [markdown]
# Then the explanation: which second measurement could speak against your reason? The figures and tables of the lessons
# are all at hand: what of the gap is closed (04), what the tasks share (05), how long each layer's step is (the audit's
# last column).

# %%
my_study = my_prediction and Study(
    question="…",
    change="…",
    prediction=my_prediction,
    found=my_trials.against("mine", REFERENCE),
    explanation="",
)
my_study.table() if my_study else "Nothing to explain yet."

# %% [markdown]
#
# ## What this run showed

# %%
found = study.found
say(
    f"**The prediction was {prediction.low:g} to {prediction.high:g} points; measured were {found.told}. ".replace(
        "-", "−", 1
    )
    + f"{study.outcome[0].upper()}{study.outcome[1:]}.** The reason was that *{prediction.because}*. The second "
    f"measurement, over {len(tasks)} tasks at {len(pools)} seeds: {speaks}. This was one idea, one network, one kind "
    "of experts.",
    holds={"the change was measured at every seed": len(trials.seeds) == len(pools)},
    facts={"10.points": found.points},
)

# %% [markdown]
# ## Recap
#
# * A prediction is a range and a reason, before the run. Three outcomes: it held, it failed, or more seeds would tell.
# * One change, everything else the same; choices on validation images, reports on seeds that chose nothing.
# * A reason is tested by a second measurement that could have spoken against it.
# * Say how many ideas were tried.
#
# ## Try it · in depth
#
# 1. The hot experts, `regime="hot"` in `pool_of`: are their lengths more unequal? Predict first.
# 2. Three seeds tell little. Add two, `SEED + 40` and `SEED + 50`: how much narrower does the interval become, and how
#    much of that is Student's factor?
# 3. Hand your study to somebody who did not see it grow, with the rubric. Where do they give fewer points than you?
#
# *References.* Predictions before results: Nosek et al., "The preregistration revolution", PNAS 2018. Many comparisons:
# Gelman and Loken, "The garden of forking paths", 2013. Methods of one's own: `docs/merging.md`.
