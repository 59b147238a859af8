# %% [markdown]
# # 02 · Naive averaging
#
# **By the end you will have shown that** the average of good experts can be worse than the base.
#
# *Before this:* [01 · Toy experts](01_toy_experts.ipynb).

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

sizes = {"base_steps": profile.base_steps, "expert_steps": profile.expert_steps}
pool_of = partial(make_pool, seed=SEED, source=source, **sizes)  # from the cache where it is there
mild = pool_of(regime="mild")
titles = {name: task.title for name, task in mild.tasks.items()}

# %% tags=["machine"]
header("02")

# %% [markdown]
# ## The average, by hand · short route
#
# With $T$ experts, the simple average is the mean of their weights, and that is the base plus the mean task vector:
#
# $$\theta^* = \frac{1}{T}\sum_i \theta_i = \theta_0 + \frac{1}{T}\sum_i \tau_i .$$
#
# Write both steps. (Stuck? `problem("02.1").hint(1)`; the last resort is `problem("02.1").solution()`.)

# %%
problem("02.1")


# %% tags=["exercise"]
def task_vector(base, expert):
    # your code: begin
    return {key: expert[key] - base[key] for key in base}
    # your code: end


problem("02.1").check(task_vector)

# %%
problem("02.2")


# %% tags=["exercise"]
def average(base, experts):
    # your code: begin
    T = len(experts)
    return {
        key: base[key] + sum(expert[key] - base[key] for expert in experts.values()) / T
        for key in base
    }
    # your code: end


problem("02.2").check(average)

# %% [markdown] tags=["solution"]
# `base[key] + …` makes a new tensor. `base[key] += …` would have changed the base itself, and with it every later
# result.

# %% [markdown]
# Your two functions on the eight real experts, and then the library's call:

# %%
import torch
from apgd_teach.merging import merge, task_vectors

task_vector = problem("02.1").use(task_vector)
average = problem("02.2").use(average)
vectors = task_vectors(mild.base, mild.experts)
mine = average(mild.base, mild.experts)
average_mild = merge(mild.base, mild.experts, method="average")

for name, expert in mild.experts.items():
    for key, tau in task_vector(mild.base, expert).items():
        torch.testing.assert_close(tau, vectors[name][key])
for key, tensor in average_mild.state_dict.items():
    torch.testing.assert_close(mine[key], tensor)
T = len(mild.experts)
f"the function above and the library agree, in all {len(mine)} tensors"

# %% [markdown]
# ### The audit, and how long the step is · in depth
#
# Every merge comes with an audit: what was done to each tensor, and how large the step $M = \theta^* - \theta_0$ was
# beside the base. *merge*: a weight, which goes through the method as a matrix; *average*: a bias, which `merge`
# averages by most methods (lesson 06 has one that does not), unless a policy says otherwise; lesson 03 shows when that
# hurts.

# %%
average_mild.audit.table()

# %% [markdown]
# Read one row: the mean $\|\tau\|$ of a layer (over the experts) beside the step $\|M\|$ that the average takes there.
# The merged step contains one eighth of each task vector. What is left of their length depends on how far they agree.
# For $T$ vectors of one length whose cosines have the mean $\bar c$,
#
# $$\frac{\lVert M\rVert^2}{\lVert\tau\rVert^2} = \frac{1 + (T - 1)\,\bar c}{T} ,$$
#
# so the step has the whole length where all of them agree, and $1/\sqrt T$ of it where all are at right angles. (Write
# $\lVert\frac{1}{T}\sum_i\tau_i\rVert^2$ as a double sum of inner products: $T$ of them are $\lVert\tau\rVert^2$, the
# other $T(T-1)$ are $\bar c\,\lVert\tau\rVert^2$ on average.)

# %%
from apgd_teach.figures import cosine_matrix

lengths = [
    sum(float(tau.square().sum()) for tau in one.values()) ** 0.5 for one in vectors.values()
]
step = sum(float((mine[key] - mild.base[key]).square().sum()) for key in mine) ** 0.5
cosines = cosine_matrix(vectors)
mean_cosine = float((cosines.sum() - cosines.trace()) / (T * (T - 1)))
say(
    f"All layers together, the step of the average has {step / (sum(lengths) / T):.2f} of a task vector's mean length. "
    f"The mean cosine of two of these task vectors is {mean_cosine:.2f}, and the formula gives "
    f"{((1 + (T - 1) * mean_cosine) / T) ** 0.5:.2f}; at right angles it would be {T**-0.5:.2f}.",
    holds={
        "the formula holds to a tenth": abs(
            step / (sum(lengths) / T) / ((1 + (T - 1) * mean_cosine) / T) ** 0.5 - 1
        )
        < 0.1
    },
)

# %% [markdown]
# ## "Without data" is enforced · in depth
#
# While a merge runs, asking for data raises. Here is a method that cheats: it is a method like any other, a function
# of one layer's task vectors (task, out, in), but it peeks at the test images.

# %%
from dataclasses import dataclass
from typing import ClassVar

from apgd_teach.errors import DataAccessError


@dataclass(frozen=True)
class Peeking:
    """Scales the average by how bright some test images are. It must not be allowed to."""

    name: ClassVar[str] = "peeking"

    def __call__(self, task_vectors):
        brightness = mild.tasks["digits-upright"].test.images.mean()
        return task_vectors.mean(dim=0) * brightness


try:
    merge(mild.base, mild.experts, Peeking())
except DataAccessError as error:
    print(error)
else:
    raise AssertionError("the guard let a method read data")

# %% [markdown]
# The guard watches the course's own data objects, files, and the internet. It cannot see a tensor that somebody loaded
# earlier and hid in a closure; that is what reading a method's source is for.
#
# ## Mild and hot fine-tuning · short route
#
# Two sets of experts from the same base. *Mild* ones are fine-tuned with a small learning rate, *hot* ones with a
# large one. Everything else is the same: data, steps, heads, seed.
#
# > **Predict before you run.** Which experts are better at their own task, the mild or the hot ones? And which set has
# > the better average? Write both down.

# %%
hot = pool_of(regime="hot")
average_hot = merge(hot.base, hot.experts, method="average")

# %%
from apgd_teach.merging.statedict import relative_norm
from apgd_teach.tables import Table

Table(
    ("experts", "learning rate", "‖τ‖/‖θ₀‖, smallest %", "largest %"),
    [
        (
            name,
            f"{pool.recipe.lr:g}",
            100 * min(relative_norm(pool.base, expert) for expert in pool.experts.values()),
            100 * max(relative_norm(pool.base, expert) for expert in pool.experts.values()),
        )
        for name, pool in (("mild", mild), ("hot", hot))
    ],
    caption="How far the experts went",
    note="Lesson 01 called a task vector small that is shorter than a fifth (20 %) of the base.",
)

# %% tags=["readme"]
from apgd_teach.evaluate import compare
from apgd_teach.figures import draw_comparison, show

results = {
    "mild": compare(mild, {"average": average_mild}, images=profile.test_images),
    "hot": compare(hot, {"average": average_hot}, images=profile.test_images),
}
show(draw_comparison(results))

# %%
results["mild"].table()

# %%
results["hot"].table()

# %%
means = {name: (one.average("experts"), one.average("average")) for name, one in results.items()}
no_better = [
    f"{titles[task]} ({name})"
    for name, one in results.items()
    for task in titles
    if one.experts[task].accuracy <= one.base[task].accuracy
]
say(
    f"On their own tasks the mild experts have {means['mild'][0]:.1f} % and the hot ones {means['hot'][0]:.1f} %; "
    f"their averages have {means['mild'][1]:.1f} % and {means['hot'][1]:.1f} %. Experts that are no better than their "
    f"base on the test images of their own task: {'; '.join(no_better) or 'none'}."
)

# %% [markdown]
# ## The gap, and the worst task · short route
#
# The average over tasks hides who pays. What a user of task $j$ loses by getting the merged network instead of their
# own expert is the **gap**,
#
# $$L_j(\theta^*) - L_j(\theta_j),$$
#
# measured here on test images. $L_j(\theta)$ is the mean cross-entropy of the encoder $\theta$ under task $j$'s frozen
# head; with natural logarithms its unit is the nat. A gap of 0.7 nats halves the probability that the network gives to
# the right class (in the geometric mean over images). Making this small, without data, is what the method of this
# course is for.

# %%
problem("02.3")


# %% tags=["exercise"]
def gaps(merged, own):
    # your code: begin
    found = {task: merged[task] - own[task] for task in merged}
    return found, max(found, key=found.get)
    # your code: end


problem("02.3").check(gaps)

# %%
gaps = problem("02.3").use(gaps)
by_task, pays_most = gaps(
    {task: score.loss for task, score in results["hot"].merged["average"].items()},
    {task: score.loss for task, score in results["hot"].experts.items()},
)
say(
    f"Most is paid by *{titles[pays_most]}*: {by_task[pays_most]:.2f} nats, with the average of the hot experts.",
    holds={
        "your gaps are the table's": all(
            abs(by_task[task] - gap) < 1e-4 for task, gap in results["hot"].gap("average").items()
        )
    },
)

# %%
results["mild"].gap_table()

# %%
results["hot"].gap_table()

# %% [markdown]
# Three things to read with care. The base is the same in both; its gap differs because the experts it is measured
# against do. Where the *base* has a negative gap, the expert has more loss than its base on its own task: not every
# expert is a good one. And loss and accuracy need not agree: a network can lose fewer nats than another and still name
# fewer images rightly. The next tables have accuracies, and which share of the experts' gain is recovered: $0\,\%$ is
# no better than the base, $100\,\%$ as good as the experts, and below zero is worse than no fine-tuning at all.

# %%
results["mild"].summary()

# %%
results["hot"].summary()

# %% [markdown]
# ## What breaks, and what is saved · in depth
#
# An image is *broken* by the merge when the task's own expert names it rightly and the average does not, and *saved*
# when the base names it wrongly and the average rightly. Under *broken*, "$a \to b$" says that the right class is $a$
# and the average's answer $b$; under *saved*, that the base had answered $b$: always the first such test images, not
# chosen ones. *All confusions* has a map for each network: its rows are the right classes, its columns the answers.
# Look for a dark field or column that the average has and the expert has not: an answer that it gives too often. All of
# it is of the hot average; begin with the task of the largest gap.

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import Slider, draw_confusion, draw_examples, find_mistakes, panel

largest = pays_most
mistakes = find_mistakes(
    Evaluator(hot, images=profile.test_images), hot.base, average_hot.state_dict
)
named = {title: name for name, title in titles.items()}


def draw_images(task, kind):
    """Looks up: nothing is evaluated while you choose."""
    if kind == "all confusions":
        return draw_confusion(mistakes, task=named[task])
    return draw_examples(mistakes, task=named[task], kind=kind)


panel(
    draw_images,
    title="What the average of the hot experts breaks and saves",
    static=[{"kind": "broken"}, {"kind": "saved"}, {"kind": "all confusions"}],
    task=Slider("task", list(named), start=titles[largest]),
    kind=Slider("what to see", ["broken", "saved", "all confusions"]),
)

# %% [markdown]
# ## Where the average lands · in depth
#
# Stay with the task of the largest gap, and look at its loss over the plane through three networks: the base, that
# task's own expert, and the average of all eight. Distances and angles are true to weight space. Light is low loss;
# each panel has its own levels, so read the numbers on the lines.

# %%
from apgd_teach.figures import draw_planes
from apgd_teach.landscape import loss_plane

planes = {}
for name, pool, merged in (("mild", mild, average_mild), ("hot", hot, average_hot)):
    planes[name] = loss_plane(
        Evaluator(pool, images=profile.plane_images),
        pool.base,
        ("its expert", pool.experts[largest]),
        ("average of eight", merged.state_dict),
        [largest],
        points=profile.plane_points,
    )

show(
    draw_planes(
        {f"{name}: loss on {titles[largest]}": plane for name, plane in planes.items()}, titles
    )
)

# %%
say(
    "\n".join(
        f"* **{name}**: this task's expert lies {plane.places['its expert'][0]:.1f} from the base, the average of "
        f"eight {(x**2 + y**2) ** 0.5:.1f}: {x:.1f} towards the expert and {y:.1f} sideways, where the other seven "
        f"pull it. The loss there is {plane.at['average of eight']:.2f}; at the base it is "
        f"{plane.at['base']:.2f} and at the expert {plane.at['its expert']:.2f}."
        for name, plane in planes.items()
        for x, y in (plane.places["average of eight"],)
    )
    + f"\n\nPicture and numbers are of the first {profile.plane_images:,} test images."
)

# %% [markdown]
# ## The control: experts that do not share a base
#
# Averaging rests on something that is easy to overlook: all experts come from **one** $\theta_0$. Take the experts of
# two tasks, made by one recipe. In the first pair both come from the same base; in the second, the other one comes
# from a base that was trained in the same way with another seed (of its start and of the order of its data). Walk in a
# straight line from one expert to the other, and watch the loss on the first one's task.
#
# > **Predict before you run.** What happens to the loss half-way, in each pair?

# %%
from apgd_teach.figures import draw_paths
from apgd_teach.landscape import loss_path

A, B = "digits-upright", "digits-noisy"
stranger = pool_of(regime="mild", seed=SEED + 1, tasks=[B])
ends = {"one base": mild.experts[B], "two bases": stranger.experts[B]}

evaluator = Evaluator(mild.only([A]), images=profile.plane_images)
paths = {
    name: loss_path(evaluator, mild.experts[A], end, [A], points=profile.path_points)
    for name, end in ends.items()
}
show(draw_paths(paths, titles, (f"expert of\n{titles[A]}", f"expert of\n{titles[B]}")))

# %% [markdown]
# The far end of the second line is no fair judge: that network never met *this* task's head, its features mean
# something else. So try the midpoint on both tasks, each under the head that belongs to its expert. By lesson 01 these
# two tasks have the nearest task vectors of all, where they share a base: an easy pair (Try it 4 has a hard one). If
# even this pair fails with two bases, the usual explanation is that two random starts number their features in two
# different ways, and an average mixes features that have nothing to do with each other. (This experiment shows the
# failure and does not test the explanation.)

# %%
both = {}
for name, end, other in (
    ("one base", mild.experts[B], mild),
    ("two bases", stranger.experts[B], stranger),
):
    middle = merge(mild.base, {"first": mild.experts[A], "second": end}, method="average")
    on_a = compare(mild.only([A]), {"average": middle}, images=profile.test_images)
    on_b = compare(other.only([B]), {"average": middle}, images=profile.test_images)
    both[name] = (on_a, on_b, middle)

Table(
    ("pair", "task", "its own expert", "average of the two"),
    [
        (name, titles[task], one.average("experts"), one.average("average"))
        for name, (on_a, on_b, _) in both.items()
        for task, one in ((A, on_a), (B, on_b))
    ],
    caption="Accuracy (%) of the midpoint, each task under the head that belongs to its expert",
    note="The other expert of the second pair is another network.",
)

# %% [markdown]
# The pre-flight check of a merge needs no data to see this coming: an expert that is farther from the base than the
# base is long was probably not fine-tuned from it.

# %%
print("; ".join(map(str, both["two bases"][2].audit.warnings)) or "no warning")

# %% [markdown]
# ## What this run showed · short route

# %%
against = {name: one.against("average") for name, one in results.items()}
gain = {name: one.against("experts") for name, one in results.items()}
kept = {name: one.worst("average") for name, one in results.items()}
middle = {
    name: (on_a.average("average") + on_b.average("average")) / 2
    for name, (on_a, on_b, _) in both.items()
}
shown = against["hot"].verdict == "worse" and gain["hot"].verdict == "better"
change = {
    task: results["hot"].merged["average"][task].accuracy - results["hot"].base[task].accuracy
    for task in titles
}
fallen = sorted(change, key=change.get)[:2]
worst_base = [f"{one.base[kept[name][0]].accuracy:.1f} %" for name, one in results.items()]


def points(value):
    """A change of accuracy in writing."""
    return f"{value:+.1f}".replace("-", "−")


others = [change[task] for task in titles if task not in fallen]
say(
    f"**The average of good experts can be worse than the base: {'shown' if shown else 'not shown in this run'}.** "
    f"The hot experts are {gain['hot']} points above the base on their own tasks, the mild ones {gain['mild']}, in the "
    f"mean over the tasks. The average of the mild experts is {against['mild']} points against the base "
    f"({against['mild'].verdict}), the average of the hot ones {against['hot']} points ({against['hot'].verdict}).\n\n"
    f"**The worst task** (the lowest accuracy) of the average is {titles[kept['mild'][0]]} with "
    f"{kept['mild'][1]:.1f} % (mild) and {titles[kept['hot'][0]]} with {kept['hot'][1]:.1f} % (hot); there the base "
    f"has {' and '.join(dict.fromkeys(worst_base))}. The largest gap of the hot average is that of "
    f"{titles[largest]}, {by_task[largest]:.2f} nats. The fall is not shared out evenly: against the base, "
    f"{titles[fallen[0]]} changes by {points(change[fallen[0]])} points and {titles[fallen[1]]} by "
    f"{points(change[fallen[1]])}, the other six by {points(sum(others) / len(others))} on average.\n\n"
    f"**One base is not a detail**: the midpoint of two experts reaches {middle['one base']:.1f} % where they share "
    f"their base and {middle['two bases']:.1f} % where they do not.\n\n"
    "The intervals (95 %) cover the choice of test images; they do not cover the training seed. Lesson 07 does.",
    facts={
        "02.hot.base": results["hot"].average("base"),
        "02.hot.experts": results["hot"].average("experts"),
        "02.hot.average": results["hot"].average("average"),
        "02.mild.average": results["mild"].average("average"),
    },
)

# %% [markdown]
# ## Try it · in depth
#
# 1. Average only the four tasks of one family:
#    `hot.only([name for name, task in hot.tasks.items() if task.family == "fashion"])`.
#    Are these four better served than by the average of all eight? What does that say about who pulled them away?
# 2. Look at the mean gap over tasks: on which side of the base does the mild average lie, and on which the hot one?
#    If they differ, at which learning rate do average and base meet? Make a pool for one in between with
#    `pool_of(regime=Recipe("sgd", lr, steps=profile.expert_steps))` (a recipe in place of the
#    regime's name; `from apgd_teach.training import Recipe`) and compare gaps on **validation** images:
#    `compare(…, split="validation").gap_table()`. Why not on test images? (Eight experts are trained for every rate.)
# 3. `merge(hot.base, {**hot.experts, "base": hot.base})`: what does the library say, and why? Call the copy
#    "nothing" instead. What does adding the base as a ninth expert do to every task vector's share?
# 4. Walk the line between two tasks whose vectors are nearly at a right angle, `A, B = "digits-upright",
#    "digits-inverted"`. Is it still flat with one base?
#
# **Next:** [03 · Task arithmetic and interference](03_interference.ipynb).
#
# *References.* Linear mode connectivity: Frankle et al., ICML 2020,
# [arXiv 1912.05671](https://arxiv.org/abs/1912.05671). Planes through three networks: Garipov et al., NeurIPS 2018,
# [arXiv 1802.10026](https://arxiv.org/abs/1802.10026). Model soups: Wortsman et al., ICML 2022,
# [arXiv 2203.05482](https://arxiv.org/abs/2203.05482).
