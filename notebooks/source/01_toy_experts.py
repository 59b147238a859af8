# %% [markdown]
# # 01 · Toy experts
#
# **By the end you will have shown that** experts differ from their base by a small, structured vector.
#
# *Before this:* [00 · Start here](00_start_here.ipynb).

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch

# %%
from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)

# %% tags=["machine"]
header("01")

# %% [markdown]
# ## The data: two families, eight tasks
#
# Real pictures, two families of them, each shown in four ways. A *variant* is one torchvision transform, so a task
# of your own is one more `Variant` (see Try it).

# %%
from apgd_teach.data import cards_table, open_source

source = open_source(TIER)
print(source.note)
cards_table()

# %%
from apgd_teach.data import TASKS
from apgd_teach.figures import draw_tasks, show

tasks = {name: source.task(name) for name in TASKS}
titles = {name: task.title for name, task in tasks.items()}
show(draw_tasks(tasks))

# %% [markdown]
# The labels of a family are the same in all its variants: an inverted 7 is still a 7. What changes is the input, so
# the four tasks of a family want *the same answer from different pictures*. That is why they can share something,
# and why they can also pull in different directions.
#
# Every result says which images it used. Training images train, validation images choose settings, and test images
# are used only for reporting.

# %%
from apgd_teach.tables import Table

Table(
    ("task", "training", "validation", "test", "tier"),
    [
        (task.title, len(task.train), len(task.validation), len(task.test), task.tier)
        for task in tasks.values()
    ],
    caption="Images per task",
)

# %% [markdown]
# ## Base, heads, experts
#
# Three things are trained, in this order.
#
# 1. **The base** $\theta_0$, once: a small convolutional network that learns to tell all twenty classes apart, under
#    random rotation, inversion, transposition and noise.
# 2. **A head per task**, on the base's features of that task's training images: logistic regression. Then it is
#    frozen: it says what the features must look like, and no merge touches it. (In CLIP, a network of pictures and
#    texts on which merging is often studied, the frozen text side plays that part.)
# 3. **An expert per task** $\theta_i$: the base's encoder, fine-tuned under the frozen head by SGD with momentum.
#
# > **Predict before you run.** By how much of its own length does the base move when it becomes a mildly fine-tuned
# > expert: a hundredth, a tenth, half?
#
# The recipes are data: everything that a network depends on is written in them.

# %%
from dataclasses import replace

from apgd_teach.training import BASE, recipe

print("base   ", replace(BASE, steps=profile.base_steps))
print("expert ", recipe("mild", "sgd", steps=profile.expert_steps))

# %%
from apgd_teach.experts import make_pool

pool = make_pool(
    base_steps=profile.base_steps,
    expert_steps=profile.expert_steps,
    regime="mild",
    seed=SEED,
    source=source,
)

# %%
from apgd_teach.evaluate import compare

compare(pool, {}, images=profile.test_images).table()

# %% [markdown]
# ### The cache · in depth
#
# A trained network is kept under a hash of everything it was made of: architecture, data, recipe, seed. Ask for the
# same again and it is read from disk; change one ingredient and one sentence says which one, and only what depends
# on it is made anew. Each network has a card.

# %%
again = make_pool(
    base_steps=profile.base_steps,
    expert_steps=profile.expert_steps,
    regime="mild",
    seed=SEED,
    source=source,
)
f"trained by the second call: {list(again.trained) or 'nothing'}"

# %% tags=["machine"]
Table(
    ("network", "steps", "validation accuracy %", "seconds of training", "device"),
    [
        (
            titles.get(name, name),
            card["steps"],
            card["validation_accuracy"],
            card["seconds"],
            card["device"],
        )
        for name, card in pool.cards.items()
    ],
    caption="The cards of the cache",
    note="The base is tried by an output of its own, on both families at once and without distortions: all twenty "
    "classes compete. An expert is tried on its own task, with that task's head. Validation images are others than the "
    "test images above: the same network may do better on the ones than on the others.",
)

# %% [markdown]
# ## The task vector
#
# What fine-tuning did to the weights is a difference,
#
# $$\tau_i = \theta_i - \theta_0,$$
#
# one tensor per layer. Everything that follows in this course is arithmetic on these. A convolution kernel of shape
# (out, in, height, width) is looked at as a matrix (out, in · height · width): one row per output channel.

# %%
from apgd_teach.merging import task_vectors

vectors = task_vectors(pool.base, pool.experts)
one = vectors["digits-rotated45"]
Table(
    ("tensor", "shape", "as a matrix"),
    [
        (
            name,
            "×".join(map(str, tau.shape)),
            "×".join(map(str, tau.reshape(tau.shape[0], -1).shape)) if tau.ndim > 1 else "–",
        )
        for name, tau in one.items()
    ],
    caption=f"The task vector of {titles['digits-rotated45']}",
)

# %% [markdown]
# ### Small
#
# The length $\lVert\tau_i\rVert$, the root of the sum of the squares of all entries, beside that of $\theta_0$, weight
# by weight. This course calls a step small that is shorter than a fifth of the base. (Biases are left out of the
# picture: they can move by a large share of their own length, which is so short that it hardly counts in that of
# $\theta_0$.)

# %%
from apgd_teach.figures import draw_norms, layer_norms

norms = layer_norms(pool.base, vectors)
show(draw_norms(norms, titles))

# %%
from apgd_teach.merging.statedict import relative_norm

moved = {name: 100 * relative_norm(pool.base, expert) for name, expert in pool.experts.items()}
say(
    f"All layers together, the experts have moved by {min(moved.values()):.1f} to {max(moved.values()):.1f} % of "
    "$\\lVert\\theta_0\\rVert$: this is the answer to the question above."
)

# %% [markdown]
# ### Structured
#
# Is $\tau$ just noise of that length? One test here (and one in depth, *Related*), against a control that has the same
# numbers in another order: every $\tau$ with its entries shuffled inside each layer.
#
# **Directions.** Seen as a matrix, $\tau = U \Sigma V^\top$, with the singular values $s_k$ on $\Sigma$'s diagonal. If
# a few singular values carry most of the energy $\sum_k s_k^2$, fine-tuning moved the layer in a few directions only.
#
# > **Predict before you run.** What share of the energy do the first ten singular values of the encoder's last
# > layer, `linear.weight`, carry? And after shuffling?
#
# Write what is needed for that yourself. (Stuck? `problem("01.2").hint(1)`; its last resort is `.solution()`.)

# %%
problem("01.2")

# %% tags=["exercise"]
import torch


def energy(matrix, first):
    # your code: begin
    squares = torch.linalg.svdvals(matrix).square()
    return float(squares[:first].sum() / squares.sum())
    # your code: end


problem("01.2").check(energy)

# %% [markdown] tags=["solution"]
# The singular values are lengths, their squares add up to $\lVert\tau\rVert_F^2$: that is why a share of the squares
# is a share of something. PyTorch gives them sorted, the largest first.

# %%
energy = problem("01.2").use(energy)
LAYER = "linear.weight"


def shuffled(vector, seed):
    """The same numbers in each tensor, in another order."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tau.flatten()[torch.randperm(tau.numel(), generator=generator)].reshape(tau.shape)
        for name, tau in vector.items()
    }


control = {name: shuffled(vector, seed) for seed, (name, vector) in enumerate(vectors.items())}


def carried(vector, first):
    """The share of LAYER's energy that the first singular values carry, in per cent."""
    return 100 * energy(vector[LAYER], first)


shares = Table(
    ("task", "τ, first 10", "τ, first 50", "shuffled, first 10", "shuffled, first 50"),
    [
        (
            titles[name],
            carried(vectors[name], 10),
            carried(vectors[name], 50),
            carried(control[name], 10),
            carried(control[name], 50),
        )
        for name in vectors
    ],
    caption=f"Energy of {LAYER} in the first 10 and 50 of its {min(one[LAYER].shape)} directions (%)",
)
shares

# %%
from apgd_teach.figures import Slider, draw_spectra, panel, spectra

compared = {**vectors, "base": pool.base, "shuffled": control["digits-upright"]}
layers = [name for name, tensor in pool.base.items() if tensor.ndim >= 2]
shown = {layer: spectra(compared, layer) for layer in layers}


def draw_energy(layer):
    """The picture is a function of what the list below lets you choose, and looks everything up."""
    return draw_spectra(
        shown,
        {**titles, "base": "the base itself", "shuffled": "digits, upright, shuffled"},
        layer=layer,
    )


panel(
    draw_energy,
    title="Energy of the singular directions",
    static=[{"layer": LAYER}, {"layer": "conv3.weight"}],
    layer=Slider("layer", layers, start=LAYER),
)

# %% [markdown]
# In JupyterLab the list above chooses the layer; without a running kernel you see two of them. Is the broad grey curve
# of the shuffled numbers equally far from the others in every layer? Compare how many directions each layer has. And is
# it fine-tuning that is so simple, or the network? The thick black curve, dashed, is that of the base's own weights: if
# it is steep too, steepness alone says little of fine-tuning. (The shuffle excludes random numbers of these sizes and
# no more: a step of few gradients has few directions because it is short.) (In the last layer the head is near: it
# reads ten classes off the features, and asks for few directions. Look at a layer further away from it,
# `conv3.weight`.)

# %%
say(
    "In "
    + "; in ".join(
        f"`{layer}` the first ten directions carry {100 * energy(pool.base[layer].flatten(1), 10):.0f} % of the "
        "base itself and "
        f"{100 * min(energy(vector[layer].flatten(1), 10) for vector in vectors.values()):.0f} % or more of every task "
        "vector"
        for layer in (LAYER, "conv3.weight")
    )
    + "."
)

# %% [markdown]
# ### Related · in depth
#
# Two shuffled vectors of this many numbers are nearly at a right angle. Are two task vectors?

# %%
problem("01.1")


# %% tags=["exercise"]
def cosine(one, other):
    # your code: begin
    a = torch.cat([one[key].flatten() for key in one])
    b = torch.cat([other[key].flatten() for key in one])
    return float(a @ b / (a.norm() * b.norm()))
    # your code: end


problem("01.1").check(cosine)

# %% [markdown] tags=["solution"]
# One long vector per expert first, the angle then. A mean of the layers' cosines would count a small layer as much as
# a large one.

# %% [markdown]
# > **Predict before you run.** Which two of the eight tasks have the nearest task vectors?

# %%
from statistics import median

cosine = problem("01.1").use(cosine)
upright, noisy = vectors["digits-upright"], vectors["digits-noisy"]
say(
    f"By the function above, of *{titles['digits-upright']}* and *{titles['digits-noisy']}*: "
    f"{cosine(upright, noisy):.2f}. All pairs, in one product of matrices:"
)

# %%
from apgd_teach.figures import cosine_matrix, draw_cosines

cosines = cosine_matrix(vectors)
show(draw_cosines(cosines, list(titles.values())))

# %%
pairs = [(a, b) for a in range(len(titles)) for b in range(a)]
names = list(titles)
families = [tasks[name].family for name in names]
within = [float(cosines[a, b]) for a, b in pairs if families[a] == families[b]]
across = [float(cosines[a, b]) for a, b in pairs if families[a] != families[b]]
chance = cosine_matrix(control)
shuffled_cosines = [float(chance[a, b]) for a, b in pairs]
by_chance = max(map(abs, shuffled_cosines))
nearest = max(pairs, key=lambda pair: float(cosines[pair]))
groups = {"of one family": within, "of two families": across, "shuffled": shuffled_cosines}
Table(
    ("pairs", "median", "smallest", "largest"),
    [(name, median(values), min(values), max(values)) for name, values in groups.items()],
    digits=3,
    caption="Cosines between task vectors",
)

# %% [markdown]
# ## What this run showed

# %%
held = [float(value) for value in shares.column("τ, first 10")]
held_shuffled = [float(value) for value in shares.column("shuffled, first 10")]
small = max(moved.values()) < 20
structured = min(held) > 2 * max(held_shuffled)
say(
    f"**Small (less than a fifth of the base): {'yes' if small else 'no'}.** Over all layers an expert is "
    f"{min(moved.values()):.1f} to {max(moved.values()):.1f} % of ‖θ₀‖ away from the base.\n\n"
    f"**Structured (more than twice what shuffled numbers carry): {'yes' if structured else 'no'}.** "
    f"In `{LAYER}`, the encoder's last layer, ten directions carry {min(held):.0f} to "
    f"{max(held):.0f} % of a task vector's energy; of the same numbers shuffled, {min(held_shuffled):.1f} to "
    f"{max(held_shuffled):.1f} %.\n\n"
    f"**Related, and not by family alone.** The nearest two are *{titles[names[nearest[1]]]}* and "
    f"*{titles[names[nearest[0]]]}*. The nearest pair of a family has a cosine of {max(within):.2f}, its "
    f"farthest pair {min(within):.2f}; the median of one family's pairs is {median(within):.2f}, that of pairs across "
    f"families {median(across):.2f}. The largest cosine of any two shuffled vectors is {by_chance:.3f}; "
    f"pairs of experts no further from a right angle than that: "
    f"{sum(abs(v) <= by_chance for v in within + across)} of {len(pairs)}.",
    holds={
        "the function's cosine is the one of the map": abs(
            cosine(upright, noisy)
            - float(cosines[names.index("digits-upright"), names.index("digits-noisy")])
        )
        < 1e-4
    },
    facts={"01.moved.most": max(moved.values()), "01.carried.least": min(held)},
)

# %% [markdown]
# All this is of *mildly* fine-tuned experts; lesson 02 measures how far *hot* ones go. What tasks share will be a
# *subspace* in lesson 05: the directions that several task vectors use. *Interference*, a step that one task needs and
# that harms another, is the matter of lesson 03; how alike two task vectors are is a hint of it, and no more.
#
# ## Try it · in depth
#
# 1. Fine-tune with AdamW: `make_pool(optimizer="adamw", …)` with the same other arguments (its learning rate is another
#    one: `recipe("mild", "adamw")`). Before anything is trained, a sentence says what, for how long, and why: what is
#    trained again, and what is not? Then draw its spectrum beside SGD's. Is it flatter or steeper?
# 2. Make a task of your own and an expert for it: `from apgd_teach.data import Variant`, `from torchvision.transforms
#    import v2`, then `make_pool(tasks=["digits-upright", Variant("digits", "blurred", v2.GaussianBlur(5, sigma=2.0))],
#    …)` with the same other arguments. The task is then called `digits-blurred`. How close is its task vector to that
#    of *digits, upright*?
# 3. Take one task. Which of its layers moved most, in per cent of the base (the picture under *Small*), and which in
#    absolute terms (`vectors[task][layer].norm()`)? Why is that not the same question?
#
# **Next:** [02 · Naive averaging](02_naive_averaging.ipynb).
#
# *References.* Task vectors: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023,
# [arXiv 2212.04089](https://arxiv.org/abs/2212.04089). MNIST: LeCun, Cortes and Burges. Fashion-MNIST: Xiao, Rasul
# and Vollgraf, [arXiv 1708.07747](https://arxiv.org/abs/1708.07747).
