# %% [markdown]
# # 00 · Start here
#
# **By the end you will have shown that** your machine is ready, and that one function merges eight experts.
#
# *Before this:* a little PyTorch: you know what a `state_dict` is. Nothing about merging.
# *You will need:* no network and no GPU. Everything here runs on two CPU cores, on real pictures that come with the
# course.

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch

# %%
from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.lessons import problem, progress

profile = use_profile(PROFILE)

# %% tags=["machine"]
header("00")

# %% [markdown]
# ## Is this machine ready? · short route
#
# The doctor looks at what the course needs and says, row by row, "OK" or what to do. (The same table in a terminal:
# `apgd-teach doctor`.)

# %% tags=["machine"]
from apgd_teach.doctor import doctor_table, examine

doctor_table(examine())

# %% [markdown]
# Two of its rows decide what you will see. **Device**: a GPU is used where there is one; `make_pool(…, device="cpu")`
# overrules that. **Data**: the course comes with a *bundled* tier, real MNIST and Fashion-MNIST in a few megabytes,
# checked against their hashes whenever they are loaded.

# %%
from apgd_teach.data import open_source

source = open_source(TIER)
source.note

# %% [markdown]
# ## The course · short route
#
# | notebook | what it ends by having shown |
# |---|---|
# | 00 · Start here | your machine is ready, and one function merges eight experts |
# | [01 · Toy experts](01_toy_experts.ipynb) | experts differ from their base by a small, structured vector |
# | [02 · Naive averaging](02_naive_averaging.ipynb) | the average of good experts can be worse than the base |
# | [03 · Task arithmetic and interference](03_interference.ipynb) | one global λ trades tasks against each other |
# | [04 · The gap](04_the_gap.ipynb) | the gap can be estimated without data, and where that estimate breaks |
# | [05 · The shared subspace](05_shared_subspace.ipynb) | what the tasks share can be computed and protected |
# | [06 · Projected gradient descent](06_projected_descent.ipynb) | descent on Δ closes part of the gap |
# | [07 · An honest comparison](07_honest_comparison.ipynb) | which method wins here, by how much, at what cost |
# | [08 · Colour images on a GPU](08_colour_images.ipynb) | which findings hold for colour images and other networks |
# | [09 · Merge your own](09_merge_your_own.ipynb) | you can merge checkpoints from disk, and what it costs whom |
# | [10 · Capstone](10_capstone.ipynb) | what one change of your own is worth: predicted, measured, explained |
#
# 00 to 07 take about three hours, exercises included, if what is marked *in depth* waits for a second visit: no
# exercise outside needs it. **In 45 minutes**: the sections of 00, 02 and 06 that are marked *short route*; the last
# one of 06 merges two files of your own. Run the cells between them too (*Run* → *Run All Above Selected Cell*),
# without reading. The profile `fast` is small and quick; the published numbers are those of `full`.
#
# A few words that will come back all the time:
#
# * **base** $\theta_0$: the network that everything starts from;
# * **expert** $\theta_i$: a copy of the base, fine-tuned on task $i$;
# * **encoder**: all layers from the picture to its **features**, a few hundred numbers. Base and experts are encoders,
#   and only encoders are merged;
# * **head**: one more linear layer, which reads the features for one task. Each task keeps its own, outside every
#   merge, so whoever uses the merged network says which task is meant;
# * **merge**: making one encoder $\theta^*$ that serves all tasks, from the weights alone, without training data. (Some
#   methods need one number tuned on labelled validation images; we say so where they do.)

# %% [markdown]
# ## A merge · short route
#
# Eight tasks: digits that are upright, rotated, inverted (light and dark exchanged) or noisy, and clothes that are
# upright, flipped, inverted or rotated. The base has been trained under such distortions already, so that it can do a
# little of everything, and what is left for an expert to gain is small. `make_pool` trains a small base once, then one
# expert per task, and keeps them in a cache: the first run takes a minute or so in the profile `fast` and two or three
# in `full`, on two cores; it says beforehand about how long. Afterwards there is nothing left to train. (*Mild* means
# fine-tuned with a small learning rate; lesson 02 compares it with *hot*.)
#
# > **Predict before you run.** Eight experts, each fine-tuned for a task of its own, averaged into one network. Will
# > the average be as good as the experts, somewhere between the base and the experts, about as good as the base, or
# > worse?

# %%
from apgd_teach.experts import make_pool

pool = make_pool(
    "convnet",
    regime="mild",
    base_steps=profile.base_steps,
    expert_steps=profile.expert_steps,
    seed=SEED,
    source=source,
)
f"{len(pool.experts)} experts of {len(pool.tasks)} tasks, from one base"

# %% [markdown]
# And this is the merge. It takes state dicts and returns one, with an audit of how it was made: no data, no training,
# no GPU. (`linear.weight` is the encoder's last layer, not a head.)

# %%
from apgd_teach.merging import merge

merged = merge(pool.base, pool.experts, method="average")
{name: tuple(tensor.shape) for name, tensor in merged.state_dict.items()}

# %% [markdown]
# How good is it? Each task is tried with its own head, which was fitted on the base's features.

# %%
from apgd_teach.evaluate import compare
from apgd_teach.figures import draw_comparison, show

result = compare(pool, {"average": merged}, images=profile.test_images)
result.table()

# %% [markdown]
# In the picture, the grey circle is what you had before fine-tuning, the triangle what the expert reaches who knows
# this task only, the square the one encoder that is asked to do all of them.

# %%
show(draw_comparison({"one network for eight tasks": result}))

# %%
result.summary()

# %% [markdown]
# ## What this run showed · short route

# %%
where = (
    "worse than the base"
    if result.against("average").verdict == "worse"
    else "about as good as the base"
    if result.against("average").verdict != "better"
    else "between the base and the experts"
)
say(
    f"One function merged {len(pool.experts)} experts into one network. Over the eight tasks the base reaches "
    f"**{result.average('base'):.1f} %**, the experts **{result.average('experts'):.1f} %**, each on its own task, "
    f"and the average of all of them **{result.average('average'):.1f} %**. Against the base that is "
    f"{result.against('average')} points: **{result.against('average').verdict}**, judged by the 95 % interval over "
    f"test images. Of what fine-tuning gained, averaging kept {result.recovered_words('average')} %. So the answer to "
    f"the question above is, here: **{where}**. "
    "The rest of the course is about what averaging throws away: where it goes, how it can be estimated without data, "
    "and how much of it can be won back.",
    facts={
        "00.base": result.average("base"),
        "00.experts": result.average("experts"),
        "00.average": result.average("average"),
    },
)

# %% [markdown]
# ## How exercises work
#
# In the learner's version of these notebooks, which `python3 run.py lab` opens, some functions are yours to write. An
# exercise says what is asked for, and `check` says of your answer that it is right, or what is wrong with it, or that
# there is none yet. (In the published version you see a solution in its place.) One to warm up, on what every table
# above counts:

# %%
problem("00.1")


# %% tags=["exercise"]
def accuracy(logits, labels):
    # your code: begin
    return 100 * float((logits.argmax(dim=1) == labels).float().mean())
    # your code: end


problem("00.1").check(accuracy)

# %% [markdown]
# Stuck? `problem("00.1").hint(1)`, then `hint(2)` and so on; the last resort is `problem("00.1").solution()`. A lesson
# goes on with your function where it is right, and with its own where it is not, so nobody is held up:

# %%
from apgd_teach.evaluate import Evaluator

accuracy = problem("00.1").use(accuracy)
evaluator = Evaluator(pool, images=profile.test_images)
_, labels = evaluator.looked_at("digits-upright")
mine = accuracy(evaluator.logits(merged.state_dict, "digits-upright"), labels)
say(
    f"By the function above the average names {mine:.1f} % of *digits, upright* rightly.",
    holds={
        "the table above says the same": abs(
            mine - result.merged["average"]["digits-upright"].accuracy
        )
        < 0.05
    },
)

# %% [markdown]
# What you have solved on this machine is kept in a file of your own, and goes nowhere:

# %% tags=["machine"]
progress()

# %% [markdown]
# ## Try it · in depth
#
# 1. Merge two experts only: `merge(pool.base, {name: pool.experts[name] for name in ("digits-upright",
#    "digits-noisy")}, method="average")`. Before you run it: will those two tasks be better served than by the average
#    of eight? (`pool.only([...])` gives a smaller pool to `compare`.)
# 2. Train with another seed (`SEED = 1` in the parameters cell, then run all). Does the difference from the base lie
#    within the interval that you had with seed 0? What does that interval not cover? (All nine networks are trained
#    anew, which takes as long as the first time.)
# 3. Ask for something that cannot be merged: `merge(pool.base, {"broken": {}})`. Does the sentence tell you what to
#    do? The whole report: `from apgd_teach.merging import preflight`, then
#    `preflight(pool.base, {"broken": {}}).table()`.
#
# **Next:** [01 · Toy experts](01_toy_experts.ipynb).
#
# *References.* Averaging of fine-tuned networks: Wortsman et al., "Model soups", ICML 2022,
# [arXiv 2203.05482](https://arxiv.org/abs/2203.05482). The method this course works towards: Wei et al., "Modeling
# Multi-Task Model Merging as Adaptive Projective Gradient Descent", ICML 2025,
# [arXiv 2501.01230](https://arxiv.org/abs/2501.01230).
