# %% [markdown]
# # 09 · Merge your own
#
# **By the end you will have shown that** you can merge checkpoints from disk, that you are told where you cannot, and
# what the merge cost each task and class.
#
# *Before this:* the *short route* through [06 · Projected gradient descent](06_projected_descent.ipynb), and
# [07 · An honest comparison](07_honest_comparison.ipynb) for what an interval is worth.

# %% tags=["parameters"]
PROFILE = "fast"
SEED = 0
TIER = "bundled"  # or "full", once fetched: apgd-teach data --fetch
OWN = ""  # for "Your own files": base and experts, as in "base.safetensors ada.safetensors ben.safetensors"

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from apgd_teach.course.header import header
from apgd_teach.course.profiles import use_profile
from apgd_teach.course.prose import say
from apgd_teach.data import open_source
from apgd_teach.experts import make_pool
from apgd_teach.lessons import problem
from apgd_teach.own.terminal import typed
from apgd_teach.tables import Table

profile = use_profile(PROFILE)
source = open_source(TIER)
print(source.note)

# %% tags=["machine"]
header("09")

# %% [markdown]
# ## What lies on the disk
#
# Four of lesson 00's experts become what a colleague would send: files. A base, one file for each expert, no code and
# no data. (They go into a temporary folder, which is gone when this notebook's kernel ends.)

# %%
from safetensors.torch import save_file

TASKS = ("digits-upright", "digits-noisy", "fashion-upright", "fashion-inverted")
everything = make_pool(
    "convnet",
    regime="mild",
    base_steps=profile.base_steps,
    expert_steps=profile.expert_steps,
    seed=SEED,
    source=source,
)
pool = everything.only(TASKS)
titles = {task: source.task(task).title for task in TASKS}
kept = TemporaryDirectory()
folder = Path(kept.name)
save_file(pool.base, folder / "base.safetensors")
for task, expert in pool.experts.items():
    save_file(expert, folder / f"{task}.safetensors")
sorted(file.name for file in folder.iterdir())

# %% [markdown]
# ## Asked before anything is loaded
#
# A safetensors file begins with a header: the names, shapes and types of all tensors, and where each one lies. That is
# enough to say whether names and shapes fit, however large the files are. Below are commands as one types them in a
# terminal; `typed` runs them in our folder and shows what they say.

# %%
FILES = "base.safetensors " + " ".join(f"{task}.safetensors" for task in TASKS)
checked = typed(f"apgd-teach check {FILES}", folder)
checked

# %% [markdown]
# (The four that are *averaged* are biases. `apgd` merges a bias as one column more of its weight, lesson 06; other
# methods average it.) What does such a check look for? The first thing is yours to write.

# %%
problem("09.1")


# %% tags=["exercise"]
def in_the_way(base, expert):
    # your code: begin
    return sorted(
        name for name in base.keys() | expert.keys() if base.get(name) != expert.get(name)
    )
    # your code: end


problem("09.1").check(in_the_way)

# %% [markdown] tags=["solution"]
# `get` gives `None` for a name that is not there, and no shape equals `None`: the three cases are one comparison.

# %% [markdown]
# Now files that must be refused, or at least doubted. One is cut off in the middle, one has a wider last layer, one
# comes with its task head, one is a pickle that runs code when it is opened, one holds a NaN, and one is a stranger: a
# network with random weights of its own, in place of an expert of another base.
#
# > **Predict before you run.** Which of the six are found out from headers alone, which only when the tensors are read,
# > and which not even then?

# %%
import os

import torch
from apgd_teach.models import make_encoder


class Harmful:
    """What a pickle may do when it is opened: here it would make a folder, elsewhere anything."""

    def __reduce__(self):
        return (os.mkdir, (str(folder / "it-ran"),))


good = pool.experts["digits-upright"]
wider = torch.cat([good["linear.weight"], good["linear.weight"][:8]])
head = {f"head.{name}": tensor for name, tensor in pool.heads["digits-upright"].items()}
holes = good["linear.weight"].clone()
holes[0, 0] = torch.nan
save_file({**good, "linear.weight": wider}, folder / "wider.safetensors")
save_file({**good, **head}, folder / "with-its-head.safetensors")
save_file({**good, "linear.weight": holes}, folder / "nan.safetensors")
save_file(make_encoder("convnet", SEED + 99).state_dict(), folder / "stranger.safetensors")
whole = (folder / "digits-upright.safetensors").read_bytes()
(folder / "cut-off.safetensors").write_bytes(whole[: len(whole) // 2])
torch.save({"linear.weight": Harmful()}, folder / "pickle.pt")

# %%
from safetensors import safe_open

in_the_way = problem("09.1").use(in_the_way)


def shapes(file):
    """The shapes in a file's header, by name; no tensor is read."""
    with safe_open(folder / file, framework="pt") as opened:
        named = opened.keys()
        return {name: tuple(opened.get_slice(name).get_shape()) for name in named}


base_shapes = shapes("base.safetensors")
for file in ("wider.safetensors", "with-its-head.safetensors", "stranger.safetensors"):
    print(f"{file}: {', '.join(in_the_way(base_shapes, shapes(file))) or 'nothing'} in the way")

# %% [markdown]
# So says your function. And so the commands, each of the six beside a good expert:

# %%
doubtful = {
    "cut off in the middle": "cut-off.safetensors",
    "a wider last layer": "wider.safetensors",
    "with its task head": "with-its-head.safetensors",
    "a pickle with code in it": "pickle.pt",
    "holds a NaN": "nan.safetensors",
    "a stranger": "stranger.safetensors",
}
PAIR = "base.safetensors digits-noisy.safetensors"
before, merging_it = {}, {}
for number, (what, file) in enumerate(doubtful.items()):
    before[what] = typed(f"apgd-teach check {PAIR} {file}", folder)
    merging_it[what] = typed(
        f"apgd-teach merge {PAIR} {file} --out doubtful-{number}.safetensors", folder
    )
    last = merging_it[what].said.strip().splitlines()
    print(f"{file}: {last[0] if merging_it[what].code == 0 else last[-1]}\n")
written = {what: (folder / f"doubtful-{n}.safetensors").exists() for n, what in enumerate(doubtful)}
Table(
    ("the file", "check says", "merge says", "a model was written"),
    [
        (
            what,
            "can be merged" if before[what].code == 0 else "no",
            "merged" if merging_it[what].code == 0 else "no",
            "yes" if written[what] else "no",
        )
        for what in doubtful
    ],
    caption="Six files that something is wrong with",
)

# %%
from apgd_teach.merging import merge
from apgd_teach.own.judging import choose, judge, lost
from apgd_teach.own.noise import of_pool
from safetensors.torch import load_file

images = profile.own_images
NOISY = "digits-noisy"
pair = {NOISY: pool.experts[NOISY], "stranger": load_file(folder / "stranger.safetensors")}
with_stranger = {"average": merge(pool.base, pair, "average").state_dict}
beside = judge(
    pool.base,
    {NOISY: pool.experts[NOISY]},
    with_stranger,
    of_pool(pool, images=images),
    progress=False,
)
say(
    "**Three are found out from headers**: what is cut off, what has another shape, what has a tensor too many. "
    "**A pickle has no such header.** It is read by PyTorch's `weights_only=True`, which makes tensors and nothing "
    "else: "
    + (
        "the folder that this one would have made is not there. "
        * (not (folder / "it-ran").exists())
    )
    + "**A NaN is a value**, so `check` cannot see it; the merge reads every value, and stops without a file. "
    "**A stranger** has the right names and shapes and no wrong value. It *can* be merged, and only its distance from "
    "the base gives it away: a warning. The average with it classifies "
    f"{beside.of('average')[NOISY].accuracy:.0f} % of *{titles[NOISY]}* correctly, where the expert reaches "
    f"{beside.experts[NOISY].accuracy:.0f} % and the base {beside.base[NOISY].accuracy:.0f} %.",
    holds={
        "what was refused left no model behind": all(
            (merging_it[what].code == 0) == written[what] for what in doubtful
        ),
        "three are found out from headers": all(
            before[what].code != 0
            for what in ("cut off in the middle", "a wider last layer", "with its task head")
        ),
        "the pickle was refused and ran nothing": before["a pickle with code in it"].code != 0
        and not (folder / "it-ran").exists(),
        "check cannot see a NaN and merge refuses it": before["holds a NaN"].code == 0
        and merging_it["holds a NaN"].code != 0,
        "a stranger is merged with a warning": merging_it["a stranger"].code == 0
        and "Warning" in merging_it["a stranger"].said,
        "the average with a stranger is far below the expert": beside.of("average")[NOISY].accuracy
        < beside.experts[NOISY].accuracy - 10,
    },
)

# %% [markdown]
# The expert with its head needs only one option. What both have is merged, the merged file has no head, and the expert
# keeps its own:

# %%
typed(f"apgd-teach check {PAIR} with-its-head.safetensors --policy 'head.*=keep'", folder)

# %% [markdown]
# What else may differ between an expert and its base (a vocabulary with more words, another precision, names with a
# prefix), and what to do then: the table in `docs/own.md`.
#
# ## Which method, and is it good enough?
#
# To merge takes no data. To know what was lost takes some labelled examples of every task, and one function of yours:
# for a state dict and a task it returns, for each example, the predicted class and the right one. `of_pool` makes that
# function for the course's own experts. With it, `choose` merges by several methods and settings, ranks them, and gives
# advice.
#
# > **Predict before you run.** Ten candidates are ranked on validation images. By how many points will the best one
# > fall on test images, which chose nothing? And the experts, whom nobody chose?

# %%
found = choose(
    pool.base,
    pool.experts,
    of_pool(pool, split="validation", images=images),
    tolerance=2.0,
    progress=False,
)
found.table()

# %%
say(found.advice)

# %% [markdown]
# The advice rests on the images that were used for choosing, and on differences without intervals. What may be reported
# comes from other images:

# %%
average = merge(pool.base, pool.experts, "average").state_dict
networks = {found.best: found.network.state_dict, "the average": average}
judged = judge(pool.base, pool.experts, networks, of_pool(pool, images=images), progress=False)
judged.table(found.best)

# %%
from statistics import fmean


def mean_of(verdicts):
    """Mean accuracy over the tasks (%)."""
    return fmean(one.accuracy for one in verdicts.values())


def points(number):
    """A number of points, with a sign that can be seen."""
    return f"{number:.1f}".replace("-", "−")


chose, reported = mean_of(found.judged.of(found.best)), mean_of(judged.of(found.best))
say(
    f"*{found.best}* falls by {points(chose - reported)} points, from {chose:.1f} % to {reported:.1f} %; the experts "
    f"by {points(mean_of(found.judged.experts) - mean_of(judged.experts))} between the same images. Where the first "
    "falls by more than the second, that may be what choosing flattered. One choice cannot tell it from images that "
    "happen to be harder.",
)

# %% [markdown]
# ## Merged, recorded, judged, in one command
#
# On the command line your evaluation is a file with a function. This is a whole one: it builds the network, loads the
# merged encoder and the task's own head, and asks about some examples. `task` is the name under which the expert was
# given.

# %%
from apgd_teach.evaluate import Evaluator

evaluator = Evaluator(pool, images=images)
examples, heads = {}, {}
for task in TASKS:
    examples[f"{task}.images"], examples[f"{task}.labels"] = map(
        torch.clone, evaluator.looked_at(task)
    )
    heads |= {f"{task}.{name}": tensor for name, tensor in pool.heads[task].items()}
save_file({name: one.cpu() for name, one in examples.items()}, folder / "examples.safetensors")
save_file(heads, folder / "heads.safetensors")

MY_EVAL = """\
import torch
from apgd_teach.models import make_encoder  # your own class here
from safetensors.torch import load_file

examples, heads = load_file("examples.safetensors"), load_file("heads.safetensors")
encoder = make_encoder("convnet", 0).eval()


def evaluate(state, task):
    encoder.load_state_dict(state)
    weight, bias = heads[f"{task}.weight"], heads[f"{task}.bias"]
    with torch.inference_mode():
        logits = encoder(examples[f"{task}.images"]) @ weight.T + bias
    return logits.argmax(dim=1), examples[f"{task}.labels"]
"""
(folder / "my_eval.py").write_text(MY_EVAL, encoding="utf-8")
print(MY_EVAL)

# %% [markdown]
# What no file can know is written down by people: what the model is for and not for, what each expert was trained on
# and under which licence. `--report` keeps the audit (files by their hashes, what was done to each tensor, how long
# each step was), `--card` makes a model card of all of it.

# %%
import json

LICENCES = {"digits": "CC BY-SA 3.0", "fashion": "MIT"}
ABOUT = {
    "title": "four tasks in one encoder",
    "purpose": "a lesson",
    "examples": f"the first {images:,} test images of each task at most",
    "chosen": f"labelled validation images, {images:,} of each task at most, among ten candidates",
    "classes": {task: list(pool.tasks[task].classes) for task in TASKS},
    "sources": {
        "base": {"data": "MNIST and Fashion-MNIST, distorted", "licence": "CC BY-SA 3.0; MIT"},
        **{
            task: {"data": titles[task], "licence": LICENCES[task.partition("-")[0]]}
            for task in TASKS
        },
    },
}
(folder / "about.json").write_text(json.dumps(ABOUT), encoding="utf-8")
made = typed(
    f"apgd-teach merge {FILES} {found.options} --out merged.safetensors --report audit.json "
    "--evaluate my_eval.py --about about.json --card card.md",
    folder,
)
made

# %%
from apgd_teach.own.report import read

audit = read(folder / "audit.json")
same = all(
    torch.allclose(found.network.state_dict[name], one, atol=1e-5)
    for name, one in load_file(folder / "merged.safetensors").items()
)
say(
    "The file holds what `choose` had merged in memory.",
    holds={
        "the file is the merge that was chosen": same,
        "the command did all of it": made.code == 0,
    },
)

# %%
audit.table()

# %% [markdown]
# Half a year later somebody asks whether the model in use is the one that was approved. Changing one byte is enough to
# be noticed:

# %%
changed = bytearray((folder / "merged.safetensors").read_bytes())
changed[-1] ^= 1
(folder / "in-use.safetensors").write_bytes(changed)
approved = typed("apgd-teach report audit.json --model merged.safetensors", folder)
in_use = typed("apgd-teach report audit.json --model in-use.safetensors", folder)
print(approved)
print(in_use)

# %% [markdown]
# The card begins so. (`--card card.html` makes a page of it, with figures.)

# %%
card = (folder / "card.md").read_text(encoding="utf-8")
print(card.partition("## What was lost")[0])

# %% [markdown]
# What nobody has said or measured stands in it as *not stated*, or *nobody has looked*.
#
# ## Who pays?
#
# A mean over tasks hides a task, and a task's accuracy hides a class. Whoever approves a model for people wants to know
# which class lost most.

# %%
problem("09.2")


# %% tags=["exercise"]
def lost_by_class(expert, merged, labels):
    # your code: begin
    fewer = (expert == labels).double() - (merged == labels).double()
    return torch.stack([100 * fewer[labels == c].mean() for c in range(int(labels.max()) + 1)])
    # your code: end


problem("09.2").check(lost_by_class)

# %% [markdown] tags=["solution"]
# An example that both classify correctly, or neither, counts 0 in `fewer`; so only those are left in which the two
# differ in being right.

# %%
lost_by_class = problem("09.2").use(lost_by_class)
TASK = "fashion-inverted"
names = pool.tasks[TASK].classes
own, ours = judged.experts[TASK], judged.of(found.best)[TASK]
by_class = torch.as_tensor(lost_by_class(own.predicted, ours.predicted, own.labels))


def classes_with(value):
    """All classes that lost so much: ties are frequent among few examples."""
    return " and ".join(name for name, one in zip(names, by_class, strict=True) if one == value)


say(
    f"*{titles[TASK]}* lost {lost(own, ours)} points. By your function most was lost by {classes_with(by_class.max())} "
    f"({points(float(by_class.max()))}), least by {classes_with(by_class.min())} ({points(float(by_class.min()))}; "
    "below 0 it gained).",
    holds={
        "the classes' losses, weighted by their numbers, are the task's": abs(
            sum(float(one) * int((own.labels == c).sum()) for c, one in enumerate(by_class))
            / len(own.labels)
            - (own.accuracy - ours.accuracy)
        )
        < 1e-6
    },
)

# %% [markdown]
# Is that chance? Of forty classes that lost nothing, intervals of 95 % would call one harmed. The table's intervals
# hold for all forty at once (each is wider: Bonferroni), and they are paired, since both networks saw the same
# pictures.

# %%
classes = {task: pool.tasks[task].classes for task in TASKS}
judged.classes(found.best, classes, worst=8)

# %% [markdown]
# ## On worse pictures
#
# A merge stands between its experts, and may be less sure of itself than each of them on its own ground. Does it fall
# sooner when pictures get worse than those that were tested?
#
# > **Predict before you run.** Noise, blur, half the contrast, a grey block, a shift by two pixels: under which of them
# > will the merge lose *more* against its experts than on clean pictures?

# %%
from apgd_teach.own.noise import CORRUPTIONS, mean_lost, robustness, robustness_table

worse = robustness(
    pool.base,
    pool.experts,
    {found.best: found.network.state_dict},
    {name: of_pool(pool, images=images, corruption=name) for name in CORRUPTIONS},
    progress=False,
)
robustness_table(worse, found.best)

# %%
losses = {name: mean_lost(one, found.best) for name, one in worse.items()}
clean = losses.pop("as they are")
apart = {
    name: one
    for name, one in losses.items()
    if abs(one.points - clean.points) > one.margin + clean.margin
}
say(
    f"It loses more than on clean pictures under: "
    f"{', '.join(name for name, one in losses.items() if one.points > clean.points) or 'none'}. Beyond both intervals "
    "the loss is larger under: "
    f"{', '.join(name for name, one in apart.items() if one.points > clean.points) or 'none'}; smaller under: "
    f"{', '.join(name for name, one in apart.items() if one.points < clean.points) or 'none'}."
)

# %% [markdown]
# ## Smaller: the update as thin products
#
# What the merge changed in a layer is a matrix $M$. Its singular directions, the strongest first, describe most of it
# with the fewest numbers (lesson 05): with $k$ of them, $k\,(\text{out} + \text{in})$ numbers in place of
# $\text{out} \cdot \text{in}$. How many does it take?

# %%
problem("09.3")


# %% tags=["exercise"]
def directions(values, energy):
    # your code: begin
    held = values.square().cumsum(0) / values.square().sum()
    return 1 + int((held < energy).sum())
    # your code: end


problem("09.3").check(directions)

# %%
directions = problem("09.3").use(directions)
LAYER = "linear.weight"
shown = {"an expert's τ": good, "the average": average, found.best: found.network.state_dict}
spectra = {
    label: torch.linalg.svdvals((state[LAYER] - pool.base[LAYER]).double())
    for label, state in shown.items()
}
Table(
    ("update", "directions for half of ‖M‖²", "for 90 %", "of"),
    [
        (label, directions(values, 0.5), directions(values, 0.9), len(values))
        for label, values in spectra.items()
    ],
    caption=f"{LAYER}, by your function",
)

# %% [markdown]
# Energy is not accuracy. Move the slider: what is kept, where it goes, and what it is worth (on validation images, as
# whoever chooses a size should).

# %%
from apgd_teach.figures import Slider, draw_sizes, measure_sizes, panel

SHARES = [1, 2, 3, 5, 10, 20, 40, 70]
sizes = measure_sizes(
    Evaluator(pool, images=images, split="validation"),
    pool.base,
    found.network.state_dict,
    SHARES,
    progress=False,
)
panel(
    lambda share: draw_sizes(sizes, share),
    title="The update in fewer numbers",
    static=[{"share": 2}, {"share": 10}, {"share": 40}],
    share=Slider("numbers kept", SHARES, start=10, unit=" %"),
)

# %%
enough = sizes.smallest(0.5)
say(
    f"On these images, which chose the method as well, the whole update is worth {points(sizes.whole - sizes.base)} "
    "points above the base. "
    + (
        f"{enough.numbers:.0f} % of its numbers are enough to lose no more than half a point."
        if enough is not None and enough.numbers < 99
        else "None of these cuts loses less than half a point."
    )
)

# %% [markdown]
# On disk such a cut has the layout of a LoRA adapter, and is an expert like any other:

# %%
print(
    typed("apgd-teach compress base.safetensors merged.safetensors --share 0.1 --out small", folder)
)
again = typed(
    "apgd-teach merge base.safetensors small --method average --out again.safetensors", folder
)
print(again)

# %% [markdown]
# ## Smaller: a student · in depth
#
# A cut saves disk and download; the network that runs is as large as before. A **student** is another, smaller network
# that learns to answer as its teachers do. It reads pictures and no labels. The pictures may be the tasks' own, or, if
# nobody may have those, made of blurred noise.
#
# > **Predict before you run.** A sixteenth of the parameters, one network for all four tasks. Does it matter more *who*
# > teaches, the four experts or their merge, or *what is shown*?

# %%
from dataclasses import replace

from apgd_teach.own.student import RECIPE, generated, size_table, student_of

recipe = replace(RECIPE, steps=profile.student_steps)
shape = (1, 28, 28)
noise = {task: generated(2000, shape, seed=SEED + n) for n, task in enumerate(TASKS)}
teachers = {"experts": pool.experts, "merge": found.network.state_dict}
SHOWN = {"real pictures": None, "blurred noise": noise}
students = {
    (who, what): student_of(pool, by, pictures=pictures, recipe=recipe, seed=SEED, progress=False)
    for who, by in teachers.items()
    for what, pictures in SHOWN.items()
}
verdicts = {key: one.verdicts(pool, images=images) for key, one in students.items()}
rows = {
    "base": judged.base,
    "experts, four networks": judged.experts,
    found.best: judged.of(found.best),
    **{f"taught by the {who}, {what}": by for (who, what), by in verdicts.items()},
}
Table(
    ("network", *titles.values(), "mean"),
    [(label, *(by[task].accuracy for task in TASKS), mean_of(by)) for label, by in rows.items()],
    caption="Accuracy (%) of small networks and their teachers",
    note=f"The first {images:,} test images of each task at most. Students: {recipe.steps:,} steps, no labels, one "
    "seed.",
)

# %%
means = {key: mean_of(by) for key, by in verdicts.items()}
who_matters = fmean(means["experts", what] - means["merge", what] for what in SHOWN)
what_matters = fmean(means[who, "real pictures"] - means[who, "blurred noise"] for who in teachers)
say(
    f"On average over the other choice, experts in place of the merge are worth {points(who_matters)} points, real "
    f"pictures in place of noise {points(what_matters)}."
)

# %% tags=["machine"]
from torch import nn

size_table(
    {
        "merged network": nn.Sequential(pool.encoder(), pool.head(TASK)).cpu(),
        "student": students["experts", "real pictures"].model(TASK),
    },
    shape,
)

# %% [markdown]
# ## Does it pay? · in depth
#
# Merging saves the memory of all experts but one, and asks for labels on which the merge is judged. Training one
# network on all data asks for the data as well: labels, agreements, hours. The panel adds it up, in any one currency.
# **Its prices are an example; put yours in their place**: `Situation(experts=3, parameters=7000, memory_price=4)` and
# so on, and `float("inf")` for an agreement that nobody will sign. What is lost in accuracy stands on no bill, and is
# what this notebook measured.

# %%
from dataclasses import replace

from apgd_teach.figures import Situation, draw_ways

mine = Situation()
panel(
    lambda experts, parameters, memory, agreement: draw_ways(
        replace(
            mine,
            experts=experts,
            parameters=parameters,
            memory_price=memory,
            agreement_price=agreement,
        )
    ),
    title="Three ways to do several tasks",
    static=[
        {"experts": 8, "parameters": 86, "memory": 10, "agreement": 2000},
        {"experts": 8, "parameters": 7000, "memory": 10, "agreement": 10000},
    ],
    experts=Slider("experts", [2, 4, 8, 16, 32], 8),
    parameters=Slider("parameters of one, millions", [10, 86, 300, 1000, 7000], 86),
    memory=Slider("price of a GB for a month", [1, 3, 10, 30], 10),
    agreement=Slider("price of bringing one task's data together", [0, 500, 2000, 10000], 2000),
)

# %%
print(mine.table())

# %% [markdown]
# ## Your own files
#
# Name them in the first cell, `OWN`, and run this one; or type the same line in a terminal. Paths start where this
# notebook lies. Nothing is written by a check. If an expert is refused, its sentence says what to do.

# %%
typed(f"apgd-teach check {OWN}", Path.cwd()) if OWN else "No files of your own were named."

# %% [markdown]
# Then `merge`, as above; `apgd-teach merge --help` has examples. Folders of Hugging Face models, sharded files and LoRA
# adapters are taken as they are, large ones a layer at a time, and `--engine dask` spreads layers over other processes
# or machines. Tensors are merged; a configuration and a tokenizer are yours to copy, from the base.
# `apgd-teach choose` ranks the candidates by a function in a file of yours, as `choose` did above. It holds base,
# experts and two merges in memory: where that is too much, merge by two or three methods, each with `--evaluate`.
#
# ## What this run showed

# %%
by_task = {task: lost(judged.experts[task], judged.of(found.best)[task]) for task in TASKS}
worst = max(by_task, key=lambda task: by_task[task].points)
shows = [titles[task] for task in TASKS if by_task[task].shown]
say(
    f"**{len(TASKS)} checkpoints on disk became one**, by one line in a terminal, with a record that tells the "
    "approved model from one that differs in a byte.\n\n"
    f"**Told where it cannot be.** Of {len(doubtful)} doubtful files "
    f"{sum(one.code != 0 for one in before.values())} were refused by the check and "
    f"{sum(before[what].code == 0 and merging_it[what].code != 0 for what in doubtful)} while merging, none with a "
    f"model left behind; {sum(written.values())} was merged with a warning.\n\n"
    f"**What it cost.** Of {len(found.judged.merged)} candidates *{found.best}* was best on validation images. On test "
    f"images the experts have {mean_of(judged.experts):.1f} % on average, the merge {reported:.1f} %, the base "
    f"{mean_of(judged.base):.1f} %. *{titles[worst]}* lost most, {by_task[worst]} points; a loss is "
    f"shown for {'; '.join(shows) or 'no task'}.",
    holds={
        "the files were merged": made.code == 0 and checked.code == 0,
        "the record knows the approved model and no other": approved.code == 0 and in_use.code == 1,
        "the cut was merged again": again.code == 0,
    },
    facts={
        "09.base": mean_of(judged.base),
        "09.experts": mean_of(judged.experts),
        "09.merged": reported,
    },
)

# %% [markdown]
# ## Recap
#
# * Headers say whether names and shapes fit, values whether something is odd, labelled examples what a merge is worth.
# * What chooses must not report.
# * Look at the class that lost most, with an interval that knows how many were looked at. Not shown is not absent.
# * An update is a matrix: few directions may hold most of it. How many are enough is measured in accuracy.
# * A record that is not kept with the model is no record.

# %% [markdown]
# ## Try it · in depth
#
# 1. Give clothes three times the weight: `choose(…, priorities={"fashion-upright": 3, "fashion-inverted": 3})`. Does
#    another candidate win?
# 2. Merge all eight experts (`everything` in place of `pool`). What does `found.advice` say now? And with
#    `tolerance=0.5`?
# 3. Save an expert in half precision, `{name: one.half() for name, one in good.items()}`, and `check` it beside the
#    others. What does the warning say about τ?
#
# **Next:** [10 · Capstone](10_capstone.ipynb).
#
# *References.* Intervals of paired proportions: Bonett and Price, "Adjusted Wald confidence interval for a difference
# of binomial proportions based on paired data", 2012. Low rank: Eckart and Young, 1936. Adapters: Hu et al., "LoRA",
# ICLR 2022, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685). Distillation: Hinton, Vinyals and Dean, 2015,
# [arXiv 1503.02531](https://arxiv.org/abs/1503.02531). Model cards: Mitchell et al., 2019,
# [arXiv 1810.03993](https://arxiv.org/abs/1810.03993). The commands: `docs/own.md`.
