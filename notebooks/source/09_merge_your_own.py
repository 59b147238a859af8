# %% [markdown]
# # 09 · Merge your own
#
# **By the end you will have shown that** you can merge checkpoints from disk, that you are told beforehand where you
# cannot, and what the merge cost each task and class.
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
# The experts of lesson 00, four of the eight, become what a colleague would send: files. A base, one file for each
# expert, no code and no data. (They go into a temporary folder, which is gone when this notebook's kernel ends.)

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
kept = TemporaryDirectory()
folder = Path(kept.name)
save_file(pool.base, folder / "base.safetensors")
for task, expert in pool.experts.items():
    save_file(expert, folder / f"{task}.safetensors")
sorted(file.name for file in folder.iterdir())

# %% [markdown]
# ## Asked before anything is loaded
#
# A safetensors file begins with a header: names, shapes and types of all tensors, and where each one lies. That is
# enough to say whether a merge is possible at all, within a second, for files of any size. Below are commands as one
# types them in a terminal; `typed` runs them in our folder and shows what they say.

# %%
FILES = "base.safetensors " + " ".join(f"{task}.safetensors" for task in TASKS)
checked = typed(f"apgd-teach check {FILES}", folder)
checked

# %% [markdown]
# What does such a check look for? The first thing is yours to write.

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
# comes with its task head, one is a pickle that runs code when it is opened, one holds a NaN, and one was trained from
# another base.
#
# > **Predict before you run.** Which of the six can be found out from headers alone, which only when the tensors are
# > read, and which not for certain even then?

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

doubtful = {
    "cut off in the middle": "cut-off.safetensors",
    "a wider last layer": "wider.safetensors",
    "with its task head": "with-its-head.safetensors",
    "a pickle with code in it": "pickle.pt",
    "holds a NaN": "nan.safetensors",
    "from another base": "stranger.safetensors",
}
PAIR = "base.safetensors digits-noisy.safetensors"
before = {what: typed(f"apgd-teach check {PAIR} {file}", folder) for what, file in doubtful.items()}
merging_them = {
    what: typed(f"apgd-teach merge {PAIR} {file} --out doubtful-{number}.safetensors", folder)
    for number, (what, file) in enumerate(doubtful.items())
}
written = {what: (folder / f"doubtful-{n}.safetensors").exists() for n, what in enumerate(doubtful)}
Table(
    ("the file", "check says", "merge says", "a model was written"),
    [
        (
            what,
            "can be merged" if before[what].code == 0 else "no",
            "merged" if merging_them[what].code == 0 else "no",
            "yes" if written[what] else "no",
        )
        for what in doubtful
    ],
    caption="Six files that something is wrong with",
)

# %%
print(before["a pickle with code in it"])
print(merging_them["holds a NaN"])
print(merging_them["from another base"])

# %%
from apgd_teach.merging import merge
from apgd_teach.own.judging import choose, judge, lost
from apgd_teach.own.noise import of_pool
from safetensors.torch import load_file

images = profile.own_images
NOISY = "digits-noisy"
pair = {NOISY: pool.experts[NOISY], "stranger": load_file(folder / "stranger.safetensors")}
with_stranger = {
    "average": merge(pool.base, pair, "average").state_dict,
    "apgd": load_file(folder / "doubtful-5.safetensors"),
}
beside = judge(
    pool.base,
    {NOISY: pool.experts[NOISY]},
    with_stranger,
    of_pool(pool, images=images),
    progress=False,
)
names_rightly = {label: beside.of(label)[NOISY].accuracy for label in with_stranger}
say(
    "The pickle's code did not run: "
    + ("the folder that it would have made is not there. " * (not (folder / "it-ran").exists()))
    + "Headers hold no values, so `check` cannot see a NaN; the merge reads every value, and stops without a file. "
    "A stranger has the right names and shapes and no wrong value: it *can* be merged. Of "
    f"*{source.task(NOISY).title}* the expert names {beside.experts[NOISY].accuracy:.0f} % rightly, the base "
    f"{beside.base[NOISY].accuracy:.0f} %, the average with the stranger {names_rightly['average']:.0f} %, and `apgd`, "
    f"whose limit keeps every direction short, {names_rightly['apgd']:.0f} %. Only its distance from the base gives a "
    "stranger away beforehand, so that is a warning and no refusal.",
    holds={
        "what was refused left no model behind": all(
            (merging_them[what].code == 0) == written[what] for what in doubtful
        ),
        "the pickle was refused and ran nothing": before["a pickle with code in it"].code != 0
        and not (folder / "it-ran").exists(),
        "check cannot see a NaN and merge refuses it": before["holds a NaN"].code == 0
        and merging_them["holds a NaN"].code != 0,
        "the average with a stranger is far below the expert": names_rightly["average"]
        < beside.experts[NOISY].accuracy - 10,
        "a stranger is merged with a warning": merging_them["from another base"].code == 0
        and "Warning" in merging_them["from another base"].said,
    },
)

# %% [markdown]
# The expert with its head is only in need of a word. What both have is merged, and the head stays with its owner:

# %%
typed(f"apgd-teach check {PAIR} with-its-head.safetensors --policy 'head.*=keep'", folder)

# %% [markdown]
# What else may differ between an expert and its base (a vocabulary with more words, another precision, adapters), and
# what to do then: the table in `docs/own.md`.
#
# ## Merged, and recorded
#
# `--report` keeps the audit: which files went in, by their hashes, what was done to each tensor, how long each step
# was, what looked odd. Written as JSON it can be asked later; as HTML it is a page to read.

# %%
made = typed(f"apgd-teach merge {FILES} --out merged.safetensors --report audit.json", folder)
made

# %%
from apgd_teach.own.report import read

audit = read(folder / "audit.json")
audit.table()

# %% [markdown]
# Half a year later somebody asks whether the model in use is the one that was approved. One byte is enough to tell:

# %%
bytes_of = bytearray((folder / "merged.safetensors").read_bytes())
bytes_of[-1] ^= 1
(folder / "in-use.safetensors").write_bytes(bytes_of)
approved = typed("apgd-teach report audit.json --model merged.safetensors", folder)
print(approved)
in_use = typed("apgd-teach report audit.json --model in-use.safetensors", folder)
print(in_use)

# %% [markdown]
# ## Is it good enough?
#
# To merge takes no data. To know what was lost takes some labelled examples of every task, and one function of yours:
# for a state dict and a task it returns the predicted class and the right one of each example. `of_pool` makes that
# function for the course's own experts. With it, `choose` merges by several methods and settings, ranks them, and gives
# advice.
#
# > **Predict before you run.** Ten candidates are ranked on the same validation images. Will the best one look better
# > there, or on test images that chose nothing?

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
# The advice was won from the images that chose. What may be reported comes from others:

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


chose, reported = mean_of(found.judged.of(found.best)), mean_of(judged.of(found.best))
fell = {
    "the best candidate": chose - reported,
    "the experts": mean_of(found.judged.experts) - mean_of(judged.experts),
}
say(
    f"*{found.best}*: {chose:.1f} % on the images that chose it, {reported:.1f} % on others, a difference of "
    f"{fell['the best candidate']:.1f} points; the experts, which nobody chose, differ by {fell['the experts']:.1f} "
    "between the same images. "
    + (
        f"So choosing flattered it by {fell['the best candidate'] - fell['the experts']:.1f}."
        if fell["the best candidate"] > fell["the experts"]
        else "So choosing did not flatter it this time; on average over many choices it does."
    ),
    facts={"09.chosen": reported},
)

# %% [markdown]
# Tasks are seldom worth the same. `priorities` are weights of the mean: here clothes count three times.

# %%
weighted = choose(
    pool.base,
    pool.experts,
    of_pool(pool, split="validation", images=images),
    priorities={"fashion-upright": 3, "fashion-inverted": 3},
    progress=False,
)
say(
    f"With equal weights: {found.best}. With clothes counting three times: {weighted.best}"
    + (", the same." if weighted.best == found.best else ".")
)

# %% [markdown]
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
# An example that both name rightly, or neither, counts 0 in `fewer`; so only those are left on which the two differ in
# being right.

# %%
lost_by_class = problem("09.2").use(lost_by_class)
TASK = "fashion-upright"
names = pool.tasks[TASK].classes
own, ours = judged.experts[TASK], judged.of(found.best)[TASK]
by_class = lost_by_class(own.predicted, ours.predicted, own.labels)
pays = int(by_class.argmax())
say(
    f"*{source.task(TASK).title}* lost {lost(own, ours)} points. By your function the class *{names[pays]}* lost "
    f"most, {float(by_class[pays]):.1f}; *{names[int(by_class.argmin())]}* lost least, "
    f"{float(by_class.min()):.1f}.".replace("-", "−"),
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
# Is that chance? With four tasks of ten classes, forty intervals of 95 % would call two classes wronged where none is.
# The table's intervals hold for all forty at once (each is wider: Bonferroni), and they are paired, since both networks
# saw the same pictures.

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
from apgd_teach.own.noise import CORRUPTIONS, robustness, robustness_table

worse = robustness(
    pool.base,
    pool.experts,
    {found.best: found.network.state_dict},
    {name: of_pool(pool, images=images, corruption=name) for name in CORRUPTIONS},
    progress=False,
)
robustness_table(worse, found.best)

# %% [markdown]
# ## Smaller: the update as thin products
#
# What the merge changed in a layer is a matrix $M$. Its singular directions, the strongest first, are the best way to
# say most of it in few numbers (lesson 05): with $k$ of them, $k\,(\text{out} + \text{in})$ numbers in place of
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
    caption=f"`{LAYER}`, by your function",
    note="Methods that even out singular values leave an update that needs more of them.",
)

# %% [markdown]
# Energy is not accuracy. Move the slider: what is kept, where it goes, and what it is worth (on validation images, as
# whoever chooses a size should).

# %%
from apgd_teach.evaluate import Evaluator
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
    f"The whole update is worth {sizes.whole - sizes.base:.1f} points above the base. "
    + (
        f"{enough.numbers:.0f} % of its numbers are enough to lose no more than half a point of that."
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
# ## Smaller: a student
#
# A cut saves disk and download; the network that runs is as large as before. A **student** is another, smaller network
# that learns to answer as its teachers do. It reads pictures and no labels. The pictures may be the tasks' own, or, if
# nobody may have those, made of blurred noise.
#
# > **Predict before you run.** A sixteenth of the parameters, one network for all four tasks. Does it matter more *who*
# > teaches, the four experts or their merge, or *what is shown*?

# %%
from dataclasses import replace

from apgd_teach.own.student import RECIPE, generated, student_of

recipe = replace(RECIPE, steps=profile.student_steps)
shape = (1, 28, 28)
noise = {task: generated(2000, shape, seed=SEED + n) for n, task in enumerate(TASKS)}
teachers = {"experts": pool.experts, "merge": found.network.state_dict}
students = {
    f"taught by the {who}, {what}": student_of(
        pool, by, pictures=pictures, recipe=recipe, seed=SEED, progress=False
    )
    for who, by in teachers.items()
    for what, pictures in (("real pictures", None), ("blurred noise", noise))
}
verdicts = {
    "base": judged.base,
    "experts, four networks": judged.experts,
    found.best: judged.of(found.best),
    **{label: one.verdicts(pool, images=images) for label, one in students.items()},
}
titles = {task: source.task(task).title for task in TASKS}
Table(
    ("network", *titles.values(), "mean"),
    [
        (label, *(by[task].accuracy for task in TASKS), mean_of(by))
        for label, by in verdicts.items()
    ],
    caption="Accuracy (%) of small networks and their teachers",
    note=f"The first {images:,} test images of each task at most. Students: {recipe.steps:,} steps, no labels.",
)

# %% tags=["machine"]
from apgd_teach.own.student import size_table
from torch import nn

best_student = max(students, key=lambda label: mean_of(verdicts[label]))
size_table(
    {
        "merged network": nn.Sequential(pool.encoder(), pool.head(TASK)).cpu(),
        "student": students[best_student].model(TASK),
    },
    shape,
)

# %% [markdown]
# ## The papers
#
# A model card says what went in, what was lost and for whom, and how the method was chosen. What nobody measured or
# said stands in it as such: a card without gaps is a claim. (On the command line: `--evaluate`, `--about`, `--card`.)

# %%
from apgd_teach.own.card import Card, Source

LICENCES = {"digits": "CC BY-SA 3.0", "fashion": "MIT"}
card = Card(
    "four tasks in one encoder",
    found.network.audit,
    purpose="a lesson",
    sources={
        "base": Source("MNIST and Fashion-MNIST under distortions", "CC BY-SA 3.0; MIT"),
        **{task: Source(titles[task], LICENCES[task.partition("-")[0]]) for task in TASKS},
    },
    judged=judged,
    label=found.best,
    classes=classes,
    choice=found,
    robustness=worse,
    examples=f"the first {images:,} test images of each task at most",
)
card.save(folder / "card.html")
card.ledger()

# %%
say(
    f"The card has {len(card.sections())} sections: "
    + "; ".join(one.head for one in card.sections())
    + ". What nobody said stands in it as *not stated*: what it must not be used for, for one.",
    holds={"the card says what nobody said": "not stated" in card.to_markdown()},
)

# %% [markdown]
# ## Your own files
#
# Name them in the first cell, `OWN`, and run this one; or type the same line in a terminal. Paths start where this
# notebook lies. Nothing is written by a check. If an expert is refused, its sentence says what to do.

# %%
typed(f"apgd-teach check {OWN}", Path.cwd()) if OWN else "No files of your own were named."

# %% [markdown]
# Then, in a terminal:
#
# ```sh
# apgd-teach merge base.safetensors ada.safetensors ben.safetensors --out merged.safetensors --report audit.json
# apgd-teach merge base/ ada/ ben/ --out merged/ --evaluate my_eval.py --card card.html --about about.json
# ```
#
# Folders of Hugging Face models, sharded files and LoRA adapters are taken as they are, large ones a layer at a time;
# `--engine dask` spreads layers over other processes or machines. A pickle (`.pt`, `.bin`) is read with a warning, and
# only as far as PyTorch's `weights_only=True` reads it. Before anybody relies on the result: measure it on labelled
# examples of every task, look at the classes, and keep the audit beside the model.

# %% [markdown]
# ## What this run showed

# %%
lost_by_task = {
    task: judged.experts[task].accuracy - judged.of(found.best)[task].accuracy for task in TASKS
}
worst = max(lost_by_task, key=lost_by_task.get)
refused = [what for what in doubtful if before[what].code != 0]
late = [what for what in doubtful if before[what].code == 0 and merging_them[what].code != 0]
doubted = [what for what in doubtful if merging_them[what].code == 0]
say(
    f"**{len(TASKS)} checkpoints on disk became one**, by one line in a terminal, with a record that tells the "
    "approved model from one that differs in a byte.\n\n"
    f"**Refused before loading**: {'; '.join(refused)}. Refused while reading: {'; '.join(late) or 'none'}. Merged "
    f"with a warning: {'; '.join(doubted) or 'none'}.\n\n"
    f"**What it cost.** Of {len(found.judged.merged)} candidates *{found.best}* was best on validation images. On test "
    f"images the experts have {mean_of(judged.experts):.1f} % in the mean, the merge {reported:.1f} %, the base "
    f"{mean_of(judged.base):.1f} %. *{titles[worst]}* lost most, {lost_by_task[worst]:.1f} points.\n\n"
    f"**Smaller.** The best student, *{best_student}*, has {mean_of(verdicts[best_student]):.1f} %.",
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
# * Headers say whether a merge is possible, values whether something is odd, labelled examples what it is worth.
# * What chooses must not report.
# * Look at the class that lost most, with an interval that knows how many were looked at.
# * An update is a matrix: few directions may hold most of it. How many are enough is measured in accuracy.
# * A record that is not kept with the model is no record.

# %% [markdown]
# ## Try it · in depth
#
# 1. Merge all eight experts (`everything` in place of `pool`). What does `found.advice` say now?
# 2. Set `tolerance=0.5` and `tolerance=5` in `choose`. At which does the advice change?
# 3. Save an expert in half precision, `{name: one.half() for name, one in good.items()}`, and `check` it beside the
#    others. What does the warning say about τ?
# 4. Write `my_eval.py` with a function `evaluate(state, task)` for files of your own, and let `--evaluate` judge them.
#
# **Next:** [10 · Capstone](10_capstone.ipynb).
#
# *References.* Intervals of paired proportions: Bonett and Price, "Adjusted Wald confidence interval for a difference
# of binomial proportions based on paired data", 2012. Low rank: Eckart and Young, 1936. Adapters: Hu et al., "LoRA",
# ICLR 2022, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685). Distillation: Hinton, Vinyals and Dean, 2015,
# [arXiv 1503.02531](https://arxiv.org/abs/1503.02531). Model cards: Mitchell et al., 2019,
# [arXiv 1810.03993](https://arxiv.org/abs/1810.03993). The commands: `docs/own.md`.
