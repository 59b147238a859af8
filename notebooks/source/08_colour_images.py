# %% [markdown]
# # 08 · Colour images on a GPU
#
# **By the end you will have shown** which of the course's findings hold for colour images: the same code on three kinds
# of networks, and on whatever device is here.
#
# *Before this:* [07 · An honest comparison](07_honest_comparison.ipynb).

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
DATA = "auto"  # "cifar10" fetches 170 MB; APGD_TEACH_CIFAR names a copy; "generated" needs nothing

# %%
import torch
from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import open_colour
from apgd_teach.devices import describe_device, pick_device
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)
source = open_colour(DATA, per_class=profile.colour_per_class)
(family,) = source.families
print(source.note)
device = pick_device("auto")

# %% tags=["machine"]
header("08", accelerator=True)

# %% [markdown]
# ## The pictures
#
# CIFAR-10 states no licence, so no picture of it is shown here, and none lies in the repository. What is shown are the
# *generated* shapes and textures, which stand in for it where it cannot be had, and which are not CIFAR-10. The
# variants are the same for both: eight that keep the classes, and two halves of the classes, each with a head of its
# own.

# %%
from apgd_teach.figures import draw_tasks, show

example = open_colour("generated", per_class=10)
show(draw_tasks({name: example.task(name) for name in example.tasks}))

# %%
*variants, one_half, other_half = source.tasks
variants = variants[: profile.colour_variants]
halves = (one_half, other_half)
names = [*variants, *halves]
titles = {name: source.task(name).title for name in names}
say(
    f"The results below are of **{family.title}** (tier `{source.tier}`), {len(names)} tasks: "
    f"{'; '.join(titles.values())}. "
    + (
        "So they are no results on CIFAR-10."
        if source.tier in ("generated", "pictures")
        else "Its licence: none stated."
    )
)

# %% [markdown]
# ## Three networks
#
# * **colour-convnet**: three convolutions with GroupNorm. A GroupNorm keeps no statistics; its scales and shifts are
#   vectors.
# * **colour-resnet**: residual blocks with BatchNorm, which keeps the mean and variance of what it saw in training: of
#   *data*.
# * **colour-vit**: a small vision transformer, the family of networks that the paper merges.
#
# A merge asks of every tensor what it is (lesson 02's audit): a weight with an output and an input side goes through
# the method, vectors are averaged, integers (a BatchNorm's count of batches) stay.

# %%
from collections import Counter

from apgd_teach.merging import policy_of
from apgd_teach.models import count_parameters, make_encoder
from apgd_teach.tables import Table

COLOUR = ("colour-convnet", "colour-resnet", "colour-vit")
kinds = {name: Counter(map(str, policy_of(make_encoder(name, 0)).values())) for name in COLOUR}
Table(
    ("network", "parameters", "merged as weights", "averaged", "kept"),
    [
        (
            name,
            count_parameters(make_encoder(name, 0)),
            *(counts[action] for action in ("merge", "average", "keep")),
        )
        for name, counts in kinds.items()
    ],
    caption="What a merge does with the tensors of each network",
    note="Averaged are biases, scales and shifts, a BatchNorm's statistics, the transformer's class token and position "
    "embeddings.",
)

# %% [markdown]
# ## As fast as the machine
#
# Experts do not depend on each other, and each is a small training. All images lie on the device, in place of being
# fetched one by one by a *DataLoader*. What else pays depends on the machine. Each *way* below takes a training step by
# turns with the plain one, so that a noisy machine slows all alike: *channels last* is another layout in memory,
# *bfloat16* computes matrix products and convolutions with fewer digits (PyTorch's autocast), *compiled* makes one
# program of the network.
#
# > **Predict before you run.** Which of them will pay here, and by what factor?

# %% tags=["machine"]
from apgd_teach.machine import PLAIN, WAYS, block_table, pace, pace_table, quickest

# To compile takes a while: in `fast`, only where there is an accelerator.
ways = [way for way in WAYS if not way.compiled or device.type == "cuda" or PROFILE == "full"]
paces = pace("colour-convnet", device, ways, batch_size=profile.colour_batch)
pace_table("colour-convnet", paces, describe_device(device))

# %% [markdown]
# On a CPU the course trains in the plain way whatever the table says: its numbers are the reference. On a GPU it takes,
# for each network, the quickest that is at least a tenth faster in three of four rounds and saves more than it takes to
# compile. (Several GPUs: `make_pool(…, workers=4)` trains so many experts at once, each in a process of its own; tried
# here with two processes on a CPU.) A network that is only looked at, and does not learn, takes many images at once:

# %% tags=["machine"]
block_table("colour-convnet", device)

# %% [markdown]
# ## Base and experts
#
# As in lesson 07: three seeds, each with a base, heads and experts of its own, mildly fine-tuned. The base is trained
# under random shifts, hues, inversion, transposition, noise and blur, most of what the tasks are made of. So it can do
# all of them already, experts gain little over it, and a share of that little is uncertain: look at points.

# %%
from apgd_teach.experts import make_pool
from apgd_teach.training import Recipe

small = {"batch_size": profile.colour_batch}
BASE = Recipe("adamw", 1e-3, steps=profile.colour_base_steps, weight_decay=0.01, **small)
EXPERT = Recipe("sgd", 0.02, steps=profile.colour_steps, **small)
SEEDS = [SEED, SEED + 10, SEED + 20]
trained_in = {}


def pool_of(network, tasks, seed):
    """Base and experts of one seed, trained in the way that pays for this network on this machine."""
    if network not in trained_in:
        steps = BASE.steps + len(tasks) * EXPERT.steps
        timed = paces if network == "colour-convnet" else pace(network, device, ways, **small)
        trained_in[network] = PLAIN if device.type == "cpu" else quickest(timed, steps=steps)
    return make_pool(
        network,
        tasks=tasks,
        seed=seed,
        base_steps=BASE,
        regime=EXPERT,
        source=source,
        device=device,
        way=trained_in[network],
    )


pools = {seed: pool_of("colour-convnet", names, seed) for seed in SEEDS}

# %%
from apgd_teach.merging.statedict import relative_norm

first = pools[SEED]
lengths = [100 * relative_norm(first.base, expert) for expert in first.experts.values()]
say(
    f"The experts of the first seed are {min(lengths):.1f} to {max(lengths):.1f} % of ‖θ₀‖ away from their base "
    f"(trained in the way: {trained_in['colour-convnet']})."
)

# %% [markdown]
# ## The same merges
#
# The methods of lesson 07 that carry the course's story, as they come, with the rules of that lesson.
#
# > **Predict before you run.** In what order will they come, and on which side of the base will the average stand?

# %%
from apgd_teach import merging
from apgd_teach.figures import Slider, draw_methods, panel
from apgd_teach.trials import try_methods

METHODS = {
    "average": merging.Average(),
    "task arithmetic, λ = 0.3": merging.TaskArithmetic(0.3),
    "TIES": merging.Ties(),
    "TSV-M": merging.TsvM(),
    "WUDI": merging.Wudi(),
    "the paper": merging.PAPER,
    "the published code": merging.ApgdPublished(),
    "apgd": merging.Apgd(),
}
trials = try_methods(pools, METHODS, images=profile.colour_images, title="colour-convnet")
named = {"all tasks": "all", **{title: name for name, title in titles.items()}}
panel(
    lambda seed, task: draw_methods(trials.compared[seed], task=named[task]),
    title="All methods on one pool, in colour",
    static=[{"seed": seed} for seed in SEEDS[:2]],
    seed=Slider("seed", SEEDS),
    task=Slider("task", list(named)),
)

# %%
trials.standing(
    title=f"colour-convnet, {family.title}", bold=("the paper", "the published code", "apgd")
)

# %% [markdown]
# Task by task, the mean over the seeds:

# %%
from statistics import fmean

SHOWN = ("base", "experts", "average", "task arithmetic, λ = 0.3", "the published code", "apgd")


def task_mean(label, task):
    """Accuracy (%) of one network on one task, the mean over the seeds."""
    found = []
    for one in trials.compared.values():
        scores = (
            one.base
            if label == "base"
            else one.experts
            if label == "experts"
            else one.merged[label]
        )
        found.append(scores[task].accuracy)
    return fmean(found)


Table(
    ("task", *SHOWN),
    [(titles[task], *(task_mean(label, task) for label in SHOWN)) for task in names],
    caption="Accuracy (%) by task, mean over three seeds",
    note=f"First {profile.colour_images:,} test images of each task at most. Tier: {source.tier}.",
)

# %%
above = [titles[task] for task in names if task_mean("apgd", task) > task_mean("experts", task)]
say(
    "An expert is no upper bound: it has learned from one task's images only. Tasks on which `apgd` has the higher "
    f"mean: {'; '.join(above) or 'none'}."
)

# %% [markdown]
# The variants ask one question of pictures that look different. The two halves ask different questions of pictures that
# look alike, and no label of the one is a label of the other. The same networks, on the tasks of one kind:

# %%
KINDS = {"the variants": variants, "the halves": halves}
by_kind = {
    kind: trials.on(
        {seed: pool.only(tasks) for seed, pool in pools.items()},
        ("average", "apgd"),
        images=profile.colour_images,
    )
    for kind, tasks in KINDS.items()
}
say(
    "\n".join(
        f"* On {kind}: the experts are {fmean(there.gains()):.1f} points above the base; the average against the base "
        f"{there.against('average', 'base').told}; `apgd` {there.against('apgd', 'base').told}."
        for kind, there in by_kind.items()
    )
)

# %% [markdown]
# ## What a BatchNorm remembers
#
# A BatchNorm subtracts a mean and divides by a standard deviation that were measured in training. Each expert measured
# them on its own task's images, in its own network. A merge can average them, and there are two reasons to doubt that:
# the variance of all images is more than the mean of the tasks' variances, and the merged weights make other
# activations than any expert had. The first can be computed without data:

# %%
problem("08.1")


# %% tags=["exercise"]
def pooled(means, variances):
    # your code: begin
    return means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
    # your code: end


problem("08.1").check(pooled)

# %% [markdown] tags=["solution"]
# The distance of an image from the mean of all is that from its own task's mean and that of this mean from the mean of
# all; the two are uncorrelated, so the variances add up.

# %% [markdown]
# With the statistics that the experts of a residual network carry, layer by layer:

# %%
pooled = problem("08.1").use(pooled)
few = variants[:4]
resnet = pool_of("colour-resnet", few, SEED)
norms = [key.removesuffix(".running_mean") for key in resnet.base if key.endswith(".running_mean")]
rows, statistics = [], {}
for name in norms:
    stacks = [
        torch.stack([expert[f"{name}.{what}"] for expert in resnet.experts.values()])
        for what in ("running_mean", "running_var")
    ]
    middle, together = pooled(*stacks)
    statistics |= {f"{name}.running_mean": middle, f"{name}.running_var": together}
    rows.append((name, 100 * float((together / stacks[1].mean(dim=0) - 1).mean())))
Table(
    ("BatchNorm", "variance of all above the mean of the experts', %"),
    rows,
    digits=1,
    caption="What averaging the experts' variances leaves out",
    note="Mean over the channels.",
)

# %% [markdown]
# That is the first reason; it can be mended in the merge itself, and costs no data (*pooled* below). For the second the
# statistics have to be *measured* again in the merged network, which takes images, though no labels: a method that does
# so uses unlabelled data, and the table says so. As a control, the base with statistics measured on the tasks' images.
#
# > **Predict before you run.** Which of the two reasons matters, for the average and for `apgd`? And does the base gain
# > as well?

# %%
from dataclasses import replace

from apgd_teach.evaluate import compare
from apgd_teach.merging import merge
from apgd_teach.references import recalibrated

RESNET = {"average": "average", "apgd": "apgd"}
made = {label: merge(resnet.base, resnet.experts, method) for label, method in RESNET.items()}
plain = {**made, "base": replace(made["average"], state_dict=resnet.base)}
made |= {
    f"{label}, pooled": replace(made[label], state_dict={**made[label].state_dict, **statistics})
    for label in RESNET
}
made |= {
    f"{label}, measured again": recalibrated(resnet, one, images=profile.reference_images)
    for label, one in plain.items()
}
batchnorm = compare(resnet, made, images=profile.colour_images)
batchnorm.summary()

# %%
won = {
    how: {label: batchnorm.against(f"{label}, {how}", label) for label in some}
    for how, some in {"pooled": RESNET, "measured again": plain}.items()
}
say(
    f"Only these tasks ({'; '.join(titles[task] for task in few)}) and one seed. With the same weights, "
    + "; ".join(
        f"{how}: " + ", ".join(f"{label} {one.told}" for label, one in by.items())
        for how, by in won.items()
    )
    + f". (Points of mean accuracy, 95 % intervals over test images. Measured on {profile.reference_images} training "
    "images of each task, all tasks together.)",
    facts={"08.recalibrated.average": won["measured again"]["average"].points},
)

# %% [markdown]
# ## A transformer · in depth
#
# The same two merges for the vision transformer, one seed and few tasks as for the residual network. (Its queries, keys
# and values come from one matrix, (288, 96), whose three parts write into different spaces: a method that looks at
# output directions takes them for one.)

# %%
vit = pool_of("colour-vit", few, SEED)
transformer = compare(
    vit,
    {label: merge(vit.base, vit.experts, method) for label, method in RESNET.items()},
    images=profile.colour_images,
)
transformer.summary()

# %% [markdown]
# ## Is it the same answer on another device?
#
# Another device adds up in another order, and its singular vectors may come with other signs or, where two singular
# values are close, turned among themselves. So bases cannot be compared. What can?

# %%
problem("08.2")


# %% tags=["exercise"]
def apart(one, other):
    # your code: begin
    return float((one @ one.T - other @ other.T).norm())
    # your code: end


problem("08.2").check(apart)

# %% [markdown] tags=["solution"]
# $U U^\top$ is the same for every orthonormal basis of a subspace: for $U Q$ with a rotation $Q$ it is
# $U Q Q^\top U^\top$.

# %%
from apgd_teach.agreement import POINTS, TOLERANCE, Place, agreement, agreement_table
from apgd_teach.merging import shared_basis, task_vectors

apart = problem("08.2").use(apart)
LAYER = "linear.weight"
tau = torch.stack([one[LAYER] for one in task_vectors(first.base, first.experts).values()])
k = min(tau.shape[1:]) // 6
single, double = (shared_basis(one, k).double() for one in (tau, tau.double()))
say(
    f"By your function the shared subspaces of `{LAYER}`, {k} directions each, from float32 and from float64, are "
    f"{float(apart(single, double)):.0e} apart, of {(2 * k) ** 0.5:.1f} at most (at right angles). Their bases differ "
    f"by {float((single - double).norm()):.1g}."
)

# %%
reference = Place(torch.device("cpu"))
other = Place(device) if device.type != "cpu" else Place(reference.device, torch.float64)
CHECKED = {"average": "average", "TSV-M": "tsv_m", "the paper": merging.PAPER, "apgd": "apgd"}
found = {
    label: agreement(first.base, first.experts, method, reference, other)
    for label, method in CHECKED.items()
}
agreement_table(found)

# %%
there = compare(
    first, {label: one.merged for label, one in found.items()}, images=profile.colour_images
)
here = trials.compared[SEED]
moved = max(abs(there.average(label) - here.average(label)) for label in CHECKED)
farthest = max(found, key=lambda label: found[label].update)
say(
    (
        f"Compared were the CPU and {describe_device(device)}."
        if device.type != "cpu"
        else "This machine has no accelerator, so what is compared is the CPU with itself in float64, more than twice "
        "the digits: how much of an answer is rounding. Nothing is said here about a GPU."
    )
    + f" {sum(one.holds for one in found.values())} of {len(found)} merges agree within {TOLERANCE:g}; the mean "
    f"accuracy differs by {moved:.2f} points at most, of {POINTS:g} that are tolerated. Farthest apart: *{farthest}*.",
    holds={
        "the accuracies of the merges are the same within the tolerance": moved <= POINTS,
    },
    facts={"08.moved": moved},
)

# %% [markdown]
# A device that has no room for a batch gets it in halves, quarters and so on (a training step adds up the gradients of
# the parts: the same step, but for a BatchNorm, which sees the parts one by one), with a sentence in the log; one image
# that does not fit is an error of one sentence.
#
# ## What this run showed

# %%
gained = trials.gains()
order = trials.ranking("none")
verdicts = trials.verdicts("base", METHODS)
PAPERS = ("average", "task arithmetic, λ = 0.3", "the published code")
in_order = trials.mean(PAPERS[0]) < trials.mean(PAPERS[1]) < trials.mean(PAPERS[2])
others = {"residual network": batchnorm, "vision transformer": transformer}
FINDINGS = {
    "the average of mild experts is better than the base (02)": ("average", "base"),
    "a larger λ than 1/T is better than the average (03)": ("task arithmetic, λ = 0.3", "average"),
    "the whole residual made small is better than the average (04: WUDI)": ("WUDI", "average"),
    "row, projected and trimmed, is better than the average (06: the paper)": (
        "the paper",
        "average",
    ),
    "apgd is better than the average (07)": ("apgd", "average"),
    "apgd is better than TSV-M (07)": ("apgd", "TSV-M"),
    "apgd is better than WUDI (07)": ("apgd", "WUDI"),
    "apgd is better than the base (07)": ("apgd", "base"),
}
Table(
    ("what one might expect (lesson)", "here, points", "so"),
    [
        (what, str(trials.against(*pair)), trials.against(*pair).verdict)
        for what, pair in FINDINGS.items()
    ],
    caption=f"colour-convnet, {family.title}, {len(names)} tasks, three seeds",
    note="Points of mean accuracy of the first against the second, paired by seed, with 95 % intervals over seeds.",
)

# %%
say(
    f"**The same code merged colour networks of three kinds**, on {describe_device(device)}. The pictures are "
    f"{family.title} (tier `{source.tier}`).\n\n"
    f"**ConvNet, three seeds.** The experts gained {min(gained):.1f} to {max(gained):.1f} points over a base of "
    f"{trials.mean('base'):.1f} %. From the highest mean down: {', '.join(order)}. Better than the base by the "
    f"intervals over seeds: {', '.join(verdicts['better']) or 'none'}; worse: "
    f"{', '.join(verdicts['worse']) or 'none'}; not told apart from it: "
    f"{', '.join(verdicts['no difference seen']) or 'none'}.\n\n"
    f"**The other two, one seed and {len(few)} tasks**, with intervals over test images: "
    + "; ".join(
        f"{kind}, the average against the base {one.against('average').told}, `apgd` against the base "
        f"{one.against('apgd').told}"
        for kind, one in others.items()
    )
    + ". With statistics measured again, the residual network's `apgd` against its base: "
    f"{batchnorm.against('apgd, measured again').told}; against the base measured again: "
    f"{batchnorm.against('apgd, measured again', 'base, measured again').told}.\n\n"
    "**The paper's order** is average, task arithmetic, its own method, the last one best. Here: "
    + "; ".join(f"{label} {trials.mean(label):.1f} %" for label in PAPERS)
    + (
        ". The means come in that order"
        if in_order
        else ". **The means do not come in that order**"
    )
    + f" (λ = 0.3, the customary value, is {0.3 * len(names):.1f} times the average's 1/T here)"
    + f"; the published code against the average: {trials.against('the published code', 'average').told}; task "
    f"arithmetic against it: {trials.against('task arithmetic, λ = 0.3', 'average').told}; the paper's text against "
    f"it: {trials.against('the paper', 'average').told}.\n\n"
    "These are small networks, trained for minutes, by one mild recipe.",
    holds={"the experts are better than their base, in the mean over the seeds": fmean(gained) > 0},
    facts={
        "08.base": trials.mean("base"),
        "08.experts": trials.mean("experts"),
        "08.average": trials.mean("average"),
        "08.apgd": trials.mean("apgd"),
    },
)

# %% [markdown]
# All of this, network by network and task by task, is kept in this notebook's output as records, which
# `apgd_teach.results.recorded_in` reads:

# %% tags=["machine"]
from apgd_teach.results import record

record(f"colour, tier {source.tier}", trials)

# %% [markdown]
# ## Recap
#
# * A merge knows shapes and no pictures: nothing in it changed for colour.
# * GroupNorm keeps no statistics. BatchNorm does: a merge averages them, and whether that harms is to be measured;
#   measuring them again uses unlabelled images.
# * What pays on a machine is measured on it, by turns.
# * Two devices, or two precisions, are compared by updates, projectors and accuracies, never by bases.

# %% [markdown]
# ## Try it · in depth
#
# 1. Above, the merges of all tasks were scored on the two halves. Merge the two halves alone, `halved =
#    first.only(halves)`: is the average of these two better or worse beside its base than it was among all?
# 2. Fine-tune hotter: `EXPERT = Recipe("sgd", 0.1, steps=profile.colour_steps, **small)`. Does the average fall below
#    the base, as in lesson 02?
# 3. How few images are enough to measure a BatchNorm's statistics again? Try `images=8` and `images=2` in
#    `recalibrated`, on validation images.
# 4. Give all of CIFAR-10 to it: `DATA = "cifar10"`, and `per_class=None` in `open_colour` (5 GB of memory). Which
#    sentence of the summary changes?
#
# **Next:** [09 · Merge your own](09_merge_your_own.ipynb).
#
# *References.* CIFAR-10: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. GroupNorm: Wu and
# He, ECCV 2018, [arXiv 1803.08494](https://arxiv.org/abs/1803.08494). BatchNorm: Ioffe and Szegedy, ICML 2015,
# [arXiv 1502.03167](https://arxiv.org/abs/1502.03167). Statistics after averaging: Jordan et al., "REPAIR", ICLR 2023,
# [arXiv 2211.08403](https://arxiv.org/abs/2211.08403). Vision transformers: Dosovitskiy et al., ICLR 2021,
# [arXiv 2010.11929](https://arxiv.org/abs/2010.11929). The merging methods: lesson 07.
