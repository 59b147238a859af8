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
from apgd_teach.course.prose import say
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)

# Base and experts of lesson 02, from the cache where they are there.
steps = {"base_steps": profile.base_steps, "expert_steps": profile.expert_steps}
pools = {
    regime: make_pool(regime=regime, seed=SEED, source=source, **steps)
    for regime in ("mild", "hot")
}
hot = pools["hot"]
titles = {name: task.title for name, task in hot.tasks.items()}
T = len(titles)

# %% tags=["machine"]
header("03")

# %% [markdown]
# ## One number for all tasks
#
# The average takes a share of $1/T$ of every task vector. **Task arithmetic** leaves the share open:
#
# $$\theta^* = \theta_0 + \lambda \sum_i \tau_i, \qquad \tau_i = \theta_i - \theta_0 .$$
#
# $\lambda$ is the **merging coefficient**: at 0 this is the base, at $1/T$ the average, at 1 every step is taken in
# full. (The library's `merge` does so with weights, and averages the biases whatever $\lambda$ is: *A trap beside λ*,
# below.) Write it for one layer. (Stuck? `problem("03.1").hint(1)`; the last resort is `problem("03.1").solution()`.)

# %%
problem("03.1")


# %% tags=["exercise"]
def task_arithmetic(base, experts, coefficient):
    # your code: begin
    return base + coefficient * sum(expert - base for expert in experts)
    # your code: end


problem("03.1").check(task_arithmetic)

# %% [markdown] tags=["solution"]
# The base is taken off every expert before λ is applied. Were it taken off once at the end, $\lambda T$ bases would be
# left in.

# %%
task_arithmetic = problem("03.1").use(task_arithmetic)

# %% [markdown]
# On the real experts, $\lambda = 0$ must give the base and $1/T$ the average of lesson 02:

# %%
from functools import partial

import torch
from apgd_teach.merging import merge

weights = [key for key, tensor in hot.base.items() if tensor.ndim >= 2]
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def by_hand(coefficient):
    """Your task arithmetic on every tensor of the hot experts."""
    return {
        key: task_arithmetic(tensor, [expert[key] for expert in hot.experts.values()], coefficient)
        for key, tensor in hot.base.items()
    }


close(by_hand(0), hot.base)
close(by_hand(1 / T), merge(hot.base, hot.experts, "average").state_dict)
f"λ = 0 is the base and λ = 1/{T} the average, in all {len(hot.base)} tensors"

# %% [markdown]
# ## Why one λ cannot suit everybody
#
# Walk from the base along $S = \sum_i \tau_i$; $\lambda$ says how far. Along this line each task's loss $L_j$ is about
# a parabola, and lowest at a $\lambda_j^{\text{best}}$ of its own: the other tasks' steps are downhill on *their*
# losses and may go either way on $L_j$, and every loss bends differently along everybody's common step. Between the
# smallest and the largest of these, a larger $\lambda$ helps each task whose best is still ahead and hurts each one
# whose best is behind: whoever sets one $\lambda$ for all decides who pays.
#
# ### The parabola · in depth
#
# To second order,
#
# $$L_j(\theta_0 + \lambda S) \approx L_j(\theta_0) + \lambda\, \langle \nabla L_j, S\rangle
# + \frac{\lambda^2}{2}\, \langle S, H_j S\rangle .$$
#
# $\langle a, b\rangle$ is the sum of $a$ times $b$ over all entries, $\nabla L_j$ the gradient and $H_j$ the matrix of
# second derivatives of $L_j$, both at $\theta_0$. Where the parabola is open upwards, it is lowest where its derivative
# $\langle \nabla L_j, S\rangle + \lambda \langle S, H_j S\rangle$ is zero:
#
# $$\lambda_j^{\text{best}} = \frac{-\langle \nabla L_j, S\rangle}{\langle S, H_j S\rangle}
# = \frac{-\langle \nabla L_j, \tau_j\rangle - \sum_{i \ne j} \langle \nabla L_j, \tau_i\rangle}
# {\langle S, H_j S\rangle} .$$
#
# The numerator has first the task's own step: $\tau_j$ went downhill on $L_j$, so this term should be positive. Then
# the steps of all others. The denominator says how sharply $L_j$ bends along everybody's common step. None of this is
# the same for two tasks. And make all steps $a$ times as long: the numerator becomes $a$ times, the denominator $a^2$
# times as large, and every best $\lambda$ shrinks to $1/a$ of what it was.
#
# ### Every task's own λ
#
# > **Predict before you run.** Which experts want the smaller λ, the mild or the hot ones? And will all tasks want
# > about the same?

# %%
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures import Slider, draw_sweep, panel, sweep
from apgd_teach.merging import task_vectors

LAMBDAS = [0, 0.0125, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6]

vectors = {name: task_vectors(pool.base, pool.experts) for name, pool in pools.items()}
sweeps = {}
for name, pool in pools.items():
    validation = Evaluator(pool, images=profile.sweep_images, split="validation")
    sweeps[name] = sweep(validation, pool.base, vectors[name], LAMBDAS)


def draw_accuracy(experts, coefficient):
    """Looks up: every λ was scored once, on validation images."""
    return draw_sweep(sweeps[experts], coefficient=coefficient)


panel(
    draw_accuracy,
    title="Task arithmetic over λ, on validation images",
    static=[{"experts": "mild", "coefficient": 1 / T}, {"experts": "hot", "coefficient": 1 / T}],
    experts=Slider("experts", list(pools)),
    coefficient=Slider("merging coefficient λ", list(sweeps["hot"].coefficients), start=1 / T),
)

# %% [markdown]
# Move λ. Where is the mean highest, and where the worst task? Where the mean hardly changes, does one of the thin lines
# rise while another falls? (Which tasks these are, the next picture shows.)
#
# The same sweep in nats: drawn is how far each task's **gap** $L_j(\theta^*) - L_j(\theta_j)$ (lesson 02) lies above
# its own smallest one. The large mark is the λ that a task would choose for itself. Between the first mark and the
# last, in the grey band, somebody pays for every step.

# %%
from apgd_teach.figures import draw_tradeoff, show

show(draw_tradeoff(sweeps["mild"]))


# %%
common = {name: swept.common for name, swept in sweeps.items()}
longer = sweeps["hot"].length / sweeps["mild"].length
shorter = "{:.3f} to {:.3f}".format(*(one / longer for one in sweeps["mild"].span))
wishes = {name: "{:g} to {:g}".format(*swept.span) for name, swept in sweeps.items()}
say(
    f"The mild experts want λ from {wishes['mild']}, the hot ones from {wishes['hot']} (of those that were tried). The "
    f"mean gap is smallest at λ = {common['mild']:g} for the mild ones and at λ = {common['hot']:g} for the hot ones, "
    f"whose $\\lVert S\\rVert$ is {longer:.1f} times as long. Were the hot $S$ the mild one and only longer, they "
    f"would want {shorter}, whatever the losses look like; the rest is where it points."
    + (
        " Among hot experts no λ > 0 that was tried is better than leaving the base alone."
        if common["hot"] == 0
        else ""
    ),
    holds={
        "hot experts want a smaller λ than mild ones": common["hot"] < common["mild"],
        "the mild experts want different λ": len(set(sweeps["mild"].span)) > 1,
    },
    facts={f"03.{name}.common": one for name, one in common.items()},
)

# %% [markdown]
# ### The bill · in depth
#
# Let every task of the mild experts choose λ for all, on validation images, and present the bill on **test** images,
# which choose nothing: how much each gap grows (+) or shrinks (−) against the λ of the smallest mean gap. Close to that
# compromise the effects are small (a few thousandths of a nat are noise); compare the rows of the smallest and the
# largest λ, in which tasks move in opposite directions. (A wish was made on validation images; on test images a task
# may do better elsewhere.)

# %%
from apgd_teach.figures import measure_bill

bill = measure_bill(pools, sweeps, images=profile.test_images)
bill.table("mild")

# %% [markdown]
# ### The average or the worst case? · in depth
#
# A λ has to be set by some rule, and the rule decides who is served. Two rules, both on validation images: the highest
# *mean* accuracy over the tasks, or the highest accuracy of the *worst* task. (Whichever it is: validation images have
# labels. With a λ chosen in this way task arithmetic is not a method without data; it has used labels to set one
# number.)
#
# > **Predict before you run.** Will the two rules choose the same λ? For which experts does the mean hide more of what
# > the worst task gets?

# %%
bill.rules_table()

# %%
said = []
for name, swept in sweeps.items():
    by_mean, by_worst = swept.by_rule.values()
    place = swept.coefficients.index(by_mean)
    hidden = swept.means[place] - swept.worst[place][1]
    said.append(
        f"For the {name} experts λ is {by_mean:g} by the mean and {by_worst:g} by the worst task (of equals, the "
        f"smallest); at the first, the worst task has {hidden:.1f} points less than the mean."
    )
say(" ".join(said))

# %% [markdown]
# A mean is what the whole pays, a worst case is what the users of one task get. Report both, and say which of the two
# the settings were chosen by, however near the two rules may come. In practice: where every task has users who would
# leave, choose by the worst task; where only the sum counts, by the mean; and where one task must not lose anything,
# leave its expert out of the merge.

# %% [markdown]
# ### A trap beside λ · in depth
#
# λ in `merge` is for weights. A bias is a vector: it has no singular directions, and most methods leave it alone. So
# something else has to be decided for it: the library averages biases, or keeps the base's where a policy says so. Here
# is what that does when the weights are left where they are, $\lambda = 0$. (At another λ, 0.3, the library's weights
# are those by hand.)

# %%
from apgd_teach.evaluate import compare

mine = by_hand(0.3)
library = merge(hot.base, hot.experts, "task_arithmetic", coefficient=0.3).state_dict
for key in weights:
    close(mine[key], library[key])

found = []
for name, pool in pools.items():
    kept, averaged = (
        merge(pool.base, pool.experts, "task_arithmetic", coefficient=0, policy={"*.bias": choice})
        for choice in ("keep", "average")
    )
    close(kept.state_dict, pool.base)
    one = compare(pool, {"averaged": averaged}, images=profile.sweep_images, split="validation")
    found.append(
        f"* **{name} experts**: {one.average('averaged'):.1f} % in place of {one.average('base'):.1f} %, "
        f"{one.against('averaged')} points ({one.against('averaged').verdict});"
    )

say(
    "With $\\lambda = 0$ and the biases kept, the merge is the base. With the experts' average biases,\n\n"
    + "\n".join(found)
    + "\n\non validation images. Biases are few, and they move with the weights that they belong to. Whoever scales "
    "the one should look at the other: the audit says what was done to every tensor.",
)

# %% [markdown]
# ## Interference: who gets in whose way · in depth
#
# Without data there is no $\langle \nabla L_j, \tau_i \rangle$ as in the derivation, but the task vectors can be
# compared with each other. Three measures of two tasks $i$ and $j$ (on the maps of the first two, red is conflict and
# blue is alike; on that of the third, dark is much in common):
#
# * **cosine**: $\langle \tau_i, \tau_j\rangle / (\lVert\tau_i\rVert \lVert\tau_j\rVert)$, as in lesson 01;
# * **opposite signs**: of $|\tau_i \tau_j|$, summed over all entries, the share of those in which one task goes up and
#   the other down: above 50 % exactly where the cosine is below zero;
# * **output directions**: with the singular value decomposition $\tau_i = U_i \Sigma_i V_i^\top$, how far the first $k$
#   columns of $U_i$ and $U_j$ span the same space, $\lVert U_i^\top U_j\rVert^2 / k$, with $k = \lfloor r/T \rfloor$,
#   $r$ the smaller side of the layer's matrix; over all layers, the mean. (Lesson 05 takes this up, with what two
#   random subspaces would have.)

# %%
from apgd_teach.figures import draw_interference, pairwise_interference

between = pairwise_interference(vectors["hot"])
MEASURES = {"cosine": "cosine", "opposite signs": "conflict", "output directions": "overlap"}


def draw_between(layer, measure):
    """Two choices of the reader's, for the hot experts."""
    return draw_interference(between, layer=layer, measure=MEASURES[measure], titles=titles)


layers = list(between.cosine)  # all of them together come first
panel(
    draw_between,
    title="Interference of the hot experts",
    static=[
        {"layer": layers[0], "measure": "opposite signs"},
        {"layer": layers[0], "measure": "output directions"},
    ],
    layer=Slider("layer", layers),
    measure=Slider("measure", list(MEASURES), start="opposite signs"),
)

# %%
signs = between.conflict[layers[0]]
apart = signs[~torch.eye(T, dtype=torch.bool)]
say(
    f"Over all layers the pairs have {float(apart.min()):.0f} to {float(apart.max()):.0f} % opposite "
    "signs: "
    + (
        "no two of these experts pull against each other on the whole. If the average harms some of them all the same, "
        "their signs alone do not show it; whether the lengths of their steps do is looked at next, in depth."
        if float(apart.max()) < 50
        else "some pairs pull against each other on the whole."
    )
)

# %% [markdown]
# ### Does that say what a merge costs? · in depth
#
# All measures above are read off the weights. Whether they predict anything is a question for test images: take every
# two of the experts, average just these two, and measure the gap that each of the two tasks is left with. (In the
# picture circles mark the pairs of the fewest and of the most opposite signs, and the dearest.)
#
# > **Predict before you run.** Look at the map above, over all layers together, and name the pair that will be cheapest
# > to merge, and the dearest.

# %%
from apgd_teach.figures import draw_pairs, measure_pairs

pairs = measure_pairs(Evaluator(hot, images=profile.sweep_images), hot.base, hot.experts)
show(draw_pairs(pairs, measure="conflict"))

# %%
pairs.table()

# %%
from apgd_teach.figures import spearman

correlation, chance = pairs.correlation("conflict"), pairs.by_chance("conflict")
by_length = spearman(pairs.lengths, pairs.gaps)
hard, dear = pairs.end("conflict", alike=False), pairs.dearest
rank = 1 + sum(one > pairs.lengths[dear] for one in pairs.lengths)
say(
    f"Over the {len(pairs.pairs)} pairs the rank correlation of opposite signs with the gap is **{correlation:.2f}** "
    f"(1: the more signs are opposite, the larger the gap; 0: the one says nothing of the other). If the tasks' names "
    f"were dealt out at random, one as far from 0 would come up in {chance:.1f} % of the deals: "
    + (
        "the weights did say something about the cost before any image was looked at."
        if chance < 5 and correlation > 0
        else "in this run the signs alone do not tell what a pair costs."
    )
    + f" A plainer measure beside it, the mean length ‖τ‖ of the two, has {by_length:.2f}: the signs say "
    + ("more than that." if correlation > by_length else "less than that.")
    + (
        " The pair with the most opposite signs is the dearest."
        if dear == hard
        else f"\n\nThe dearest pair is not the one with the most opposite signs, it is *{pairs.name(dear)}*. "
        + (
            f"What signs do not know is how *long* the steps are: by mean length this pair is number {rank} of "
            f"{len(pairs.pairs)}. Half of each of two long steps can be far from both ends."
            if rank <= len(pairs.pairs) // 4
            else "Neither the signs nor the length of the steps say why: the losses would have to be asked."
        )
    ),
    facts={"03.pairs.correlation": correlation},
)

# %% [markdown]
# **When two tasks are in strong conflict**, merging them needs a reason. The lengths of the task vectors and the map
# cost seconds and no data, so look at both before a merge, and first at the one that told more above: a pair that
# stands out can be served by two networks, by a merge of the others with one expert kept beside it, or by a method that
# looks at directions (below, and from lesson 05 on). And measure on your own images whether the pair stands out there
# as well: the map is a hint and no verdict.

# %% [markdown]
# ## How methods reduce conflict
#
# Steps that get into each other's way can be scaled one by one, cut down, or turned, all without data (but for a λ, if
# it is chosen by trying).
#
# ### A λ for every task: task-aware coefficients
#
# The paper of this course takes a $\lambda_i$ per task, in each layer by itself, such that
# all steps of a layer become equally long, $\eta$:
#
# $$\lVert\lambda_i\tau_i\rVert = \lambda_i \lVert\tau_i\rVert = \eta \quad\Longrightarrow\quad
# \lambda_i = \frac{\eta}{\lVert\tau_i\rVert} .$$
#
# $\lVert\tau_i\rVert$ is the Frobenius norm, the root of the sum of the squares of all entries.

# %%
problem("03.2")


# %% tags=["exercise"]
def task_aware(task_vectors, eta):
    # your code: begin
    return eta / task_vectors.flatten(1).norm(dim=1)
    # your code: end


problem("03.2").check(task_aware)

# %%
task_aware = problem("03.2").use(task_aware)

# %% [markdown]
# The library takes $\eta = c \cdot \operatorname{median}_j \lVert\tau_j\rVert$ with one coefficient $c$: a task
# of median length has $\lambda = c$. What would come out above 1 is set to 1.

# %% [markdown]
# ### A length from another network · in depth
#
# The paper sets $\eta = 0.07$ for every layer. That number is a length, and suits the task vectors that it was found
# on, of CLIP, where $\lVert\tau\rVert$ is about 0.23 per layer and $\lambda$ comes out near 0.3. By the library's rule
# $\lambda$ is the same whatever the scale. Your function with both:

# %%
from apgd_teach.tables import Table

C, rows = 0.3, []
for name, pool in pools.items():
    library = merge(pool.base, pool.experts, "task_aware", coefficient=C).state_dict
    for key in weights:
        stack = torch.stack([tau[key].flatten(1) for tau in vectors[name].values()])
        lengths = stack.flatten(1).norm(dim=1)
        fixed = task_aware(stack, 0.07)
        rule = task_aware(stack, C * lengths.quantile(0.5)).clamp(max=1)
        update = torch.einsum("t,toi->oi", rule, stack).view_as(pool.base[key])
        close(pool.base[key] + update, library[key])
        shown = (f"{one.min():.2f} to {one.max():.2f}" for one in (lengths, fixed, rule))
        rows.append((name, key, *shown))

Table(
    ("experts", "layer", "‖τ‖, shortest to longest", "λ at η = 0.07", f"λ at η = {C:g} · median"),
    rows,
    caption="Task-aware coefficients, smallest to largest of the tasks",
    note="By the rule of the last column, your λ give the library's merge in every layer.",
)

# %% [markdown]
# ### Trim and elect: TIES · in depth
#
# Most entries of a task vector are small and can be spared. **TIES** keeps the 20 % of an expert's entries that are
# largest in magnitude, sets the others to zero, lets what is left *elect* a sign for each entry (that of the sum), and
# averages those that have it. Opposite signs are gone, by decree. The first step is yours:

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
# The smallest magnitude among the `count` largest is the threshold: everything at or above it stays.

# %%
trim = problem("03.3").use(trim)

# %% [markdown]
# Over all layers together: each expert's weights in one long row, trimmed by your function; then election and mean.

# %%
SHARE = 0.2
long = [torch.cat([tau[key].flatten() for key in weights]) for tau in vectors["hot"].values()]
trimmed = torch.stack([trim(row, SHARE) for row in long])  # (task, entry)
elected = trimmed * trimmed.sum(dim=0).sign() > 0
mine = (trimmed * elected).sum(dim=0) / elected.sum(dim=0).clamp_min(1)

library = merge(hot.base, hot.experts, "ties", trim=SHARE).state_dict
step = [(library[key] - hot.base[key]).flatten() for key in weights]
apart = int((~torch.isclose(mine, torch.cat(step), rtol=1e-3, atol=1e-5)).sum())
held = 100 * trimmed.square().sum(dim=1) / torch.stack(long).square().sum(dim=1)
lost = 100 - 100 * elected.sum(dim=1) / (trimmed != 0).sum(dim=1)
say(
    f"Yours and the library's differ in {apart} of {len(mine):,} entries (a threshold may keep one more). The "
    f"{100 * SHARE:g} % of its entries that are kept hold {held.min():.0f} to {held.max():.0f} % of a task's "
    f"$\\lVert\\tau\\rVert^2$; of these entries {lost.min():.0f} to {lost.max():.0f} % lose the election.",
    holds={"TIES by hand is the library's": apart <= 4 * T},
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
# **TSV-M** looks at singular directions. Write $\tau_i = U_i \Sigma_i V_i^\top$ and keep the first $k = \lfloor r/T
# \rfloor$ triples of each task, $r$ being the smaller side of the layer's matrix: then all tasks together have at most
# $r$ of them. Put them side by side, $U = [U_1 \dots U_T]$, $V = [V_1 \dots V_T]$, and all singular values into one
# diagonal $\Sigma$. What is left of the sum of the task vectors is then
#
# $$\sum_i U_i \Sigma_i V_i^\top = U \Sigma V^\top .$$
#
# Feed it a direction that only task $j$ should read, a column $v$ of $V_j$:
#
# $$U \Sigma V^\top v = \underbrace{U_j \Sigma_j V_j^\top v}_{\text{what task } j \text{ wanted}}
# + \sum_{i \ne j} U_i \Sigma_i \underbrace{V_i^\top v}_{\text{crosstalk}} .$$
#
# Crosstalk is zero if the columns of $V$ are orthogonal across tasks. They are not; so replace $V$ by the nearest
# matrix $Q$ that has orthonormal columns; and $U$ likewise, so that no two tasks write into one output direction
# either. Nearest means that
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
# What each method keeps of the task vectors before it scales anything (of their entries, their energy
# $\lVert\tau\rVert^2$, their singular directions), and what comes of it. **TIES** keeps the fifth of an expert's
# entries that is largest and drops those that are outvoted by sign; **DARE** drops nine of ten entries at random and
# scales up the rest; **TSV-M** keeps the first $1/T$ of the singular directions of each task and turns them apart.
# Every update is multiplied by λ; TIES's is a mean and the others' are sums, so do not compare λ between rows. λ is
# chosen from a list, by mean accuracy on *labelled* validation images: of this table only the averages are without
# data. Only the row *average* averages the biases as well; all other merges keep the base's.
#
# > **Predict before you run.** Which will have the best worst task among the *mild* experts? The one that throws away
# > least?

# %%
from apgd_teach.figures import measure_side_by_side

side = measure_side_by_side(pools, bill.scored, tried=profile.sweep_images)
side.table("hot")

# %%
side.table("mild")

# %% [markdown]
# TIES keeps few of the entries and most of the energy, the average all of both: what is kept does not tell how good a
# merge is. Among the hot experts the average loses with the average of the biases and with the base's (its two rows).
# No method here asks how large the *gap* becomes that it leaves; lessons 04 to 06 build one that does.
#
# ## What this run showed
#
# Is what one task gains and another pays more than noise? Take the two tasks with most at stake on validation images
# (what each pays at the other's λ, added up), and ask all their test images, one by one (the bill used fewer in
# `fast`): does each task do better at its own λ?

# %%
shown = [name for name in pools if all(one.shown for one in bill.trades[name])]
say(
    "**One global λ trades tasks against each other: "
    + (f"shown for the {' and the '.join(shown)} experts" if shown else "not shown in this run")
    + ".**\n\n"
    + "\n\n".join(bill.words(name) for name in pools)
    + "".join(
        f"\n\nSide by side, {name} experts: "
        + (
            "all methods chose the smallest λ that they were offered: no ranking of methods."
            if len(side.least(name)) == len(side.tried)
            else f"*{side.best(name)}* has the highest mean "
            f"({side.scored[name].against(side.best(name)).told}, against the base), and *{side.fairest(name)}* the "
            f"highest worst task. {len(side.least(name))} of {len(side.tried)} methods chose the smallest λ that they "
            f"were offered. Better than {side.rival} by the intervals: {', '.join(side.ahead(name)) or 'none'}."
        )
        for name in pools
    )
    + "\n\nThe intervals (95 %) cover the choice of test images, not the training seed: see lesson 07.",
    holds={
        "the average of the hot experts loses": side.scored["hot"].against("average").verdict
        == "worse",
        "TIES keeps most of the energy in a fifth of the entries": all(
            kept["TIES"].entries < 20 and kept["TIES"].energy > 50 for kept in side.kept.values()
        ),
    },
)

# %% [markdown]
# ## Recap
#
# * Task arithmetic adds $\lambda \sum_i \tau_i$ to the base; $\lambda = 1/T$ is the average.
# * Along $\lambda$ every task has a best place of its own. Between two of them every $\lambda$ favours somebody: report
#   how it was chosen.
# * Signs and directions of two task vectors hint at what they cost each other; whether they tell is to be measured.
# * Task-aware coefficients make the steps of a layer equally long. TIES drops small entries and outvoted signs, DARE
#   random entries, TSV-M all but each task's first directions.

# %% [markdown]
# ## Try it · in depth
#
# 1. Sweep only the tasks of one family: `few = pools["mild"].only([...])`, then `sweep(Evaluator(few, …), few.base,
#    task_vectors(few.base, few.experts), LAMBDAS)`. Is the grey band narrower than that of all eight?
# 2. How much of DARE can these experts bear? `merge(hot.base, hot.experts, "dare", coefficient=0.1, drop=0.99)`, and
#    0.999, on validation images. By the formula, how long is the noise beside the step itself? Where does it begin to
#    show?
# 3. Keep another share in TIES: `SHARE = 0.05` and `0.5`. How much of $\lVert\tau\rVert^2$ is left, and what happens to
#    the accuracy on *validation* images?
# 4. Give each family its own λ: `merge` once with the digits' experts alone and once with the fashion experts alone,
#    and add the two steps. Can two numbers serve everybody better than one? What did you use to choose them?
# 5. Make every hot task vector ten times as long. How much longer becomes the merged step with $\eta = 0.07$, and how
#    much with the median rule? Why?
#
# **Next:** [04 · The gap](04_the_gap.ipynb).
#
# *References.* Task arithmetic: Ilharco et al., ICLR 2023, [arXiv 2212.04089](https://arxiv.org/abs/2212.04089). TIES:
# Yadav et al., NeurIPS 2023, [arXiv 2306.01708](https://arxiv.org/abs/2306.01708). DARE: Yu et al., ICML 2024,
# [arXiv 2311.03099](https://arxiv.org/abs/2311.03099). TSV-M: Gargiulo et al., CVPR 2025,
# [arXiv 2412.00081](https://arxiv.org/abs/2412.00081). Task-aware coefficients: Wei et al., ICML 2025,
# [arXiv 2501.01230](https://arxiv.org/abs/2501.01230). What the library does where these papers are silent is in the
# docstrings of `Ties`, `Dare`, `TsvM` and `TaskAware`.
