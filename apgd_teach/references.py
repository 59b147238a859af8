"""What data can buy: ways of making one network, or a merged one better, that look at images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from apgd_teach import __version__
from apgd_teach.cache import Cache
from apgd_teach.data import Split
from apgd_teach.errors import ApgdTeachError
from apgd_teach.experts import Pool, joint_network
from apgd_teach.guard import refuse_data
from apgd_teach.machine import room
from apgd_teach.merging import Merged, StateDict, fingerprint
from apgd_teach.merging.audit import Audit, TensorRow
from apgd_teach.merging.statedict import as_matrix, difference, norm
from apgd_teach.progress import bar
from apgd_teach.training import Recipe

__all__ = ["adamerging", "entropy", "gram_matrices", "joint", "recalibrated", "regmean"]

_Fact = tuple[str, str, Mapping[str, object]]
"""Of a tensor: policy, reason, and what else the audit's row says."""


@room("merging by RegMean")
def regmean(
    pool: Pool, *, images: int = 256, shrink: float = 0.95, split: str = "train", progress: bool = True
) -> Merged:
    """RegMean: per linear map, the matrix that answers each expert's own inputs most nearly as that expert does.

    W = (Σ Wⱼ Gⱼ)(Σ Gⱼ)⁻¹, Gⱼ the Gram matrix of what goes into the layer in expert j on task j's images, its entries
    off the diagonal multiplied by `shrink`. Convolutions are linear maps of their patches. Where the images say nothing
    (a direction that no input has), and for biases and all other tensors, it is the average of the experts.

    Args:
        pool: the base, experts and data.
        images: of each task, the first ones; no labels are read.
        shrink: from 0 (only the diagonals count) to 1 (the least-squares solution itself).
        split: "train", "validation" or "test", which the audit then calls "test".
        progress: show a bar.

    Returns:
        As of `merge`; `audit.data_used` is "unlabelled".

    Raises:
        ApgdTeachError: the pool has no task, there is no such split, or a number is out of range.
        DataAccessError: it was called inside a merge.

    Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023, arXiv 2212.09849;
    Lesson: 07.
    """
    sets = _pictures("RegMean", pool, images, split)
    _check(0 <= shrink <= 1, f"shrink={shrink!r} is no share; give a number from 0 to 1")
    average = {key: _mean([pool.experts[task][key] for task in sets], base) for key, base in pool.base.items()}
    facts: dict[str, _Fact] = {}
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    with bar(len(sets), "task", "RegMean", progress) as steps:
        for task, part in sets.items():
            network = _loaded(pool, pool.experts[task])
            for key, gram in gram_matrices(network, part.images.to(pool.device)).items():
                # In place: of the widest layer one such matrix is some tens of megabytes.
                own = gram.diagonal().clone()
                gram.mul_(shrink).diagonal().copy_(own)
                off = as_matrix(pool.experts[task][key].cpu().double() - average[key])
                left[key] = left.get(key, 0) + off @ gram
                right[key] = gram if key not in right else right[key].add_(gram)
            steps.update(1)
    state = dict(average)
    for key, gram in right.items():
        # Measured from the average, so that it stays where the Gram matrices are silent.
        state[key] = average[key] + _divide(left[key], gram, exact=shrink == 1).reshape(average[key].shape)
        facts[key] = ("merge", "a linear map whose inputs were seen", {"inputs": len(gram)})
    return _result(pool, "regmean", {"images": images, "shrink": shrink, "split": split}, _ledger(split), state, facts)


@torch.no_grad()
def gram_matrices(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of every linear map of a network, the Gram matrix of its inputs: G = (1/n) Σ x xᵀ, n images.

    Args:
        network: its `nn.Linear` and plain `nn.Conv2d` layers are looked at, through forward hooks.
        images: shape (image, channel, row, column), on the network's device.

    Returns:
        by the name of the layer's weight: (in, in), float64, on the CPU. For a convolution `in` is channel·kh·kw, in
        the order of its kernel, and x are its patches. Layers that were not called are missing.

    Source: arXiv 2212.09849. Lesson: 07.
    """
    grams: dict[str, Tensor] = {}

    def look(key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = _patches(layer, given[0]) if isinstance(layer, nn.Conv2d) else given[0]
            # Not on the device: MPS has no float64, and what is nearly singular needs it.
            x = x.flatten(0, -2).cpu().double()
            grams[key] = grams.get(key, 0) + x.T @ x / len(images)

        return hook

    hooks = [
        layer.register_forward_pre_hook(look(f"{name}.weight" if name else "weight"))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or _is_plain(layer)
    ]
    try:
        # The patches of a hundred images are some megabytes.
        for block in images.split(100):
            network(block)
    finally:
        for one in hooks:
            one.remove()
    return grams


@room("merging by AdaMerging")
def adamerging(
    pool: Pool,
    *,
    images: int = 256,
    steps: int = 200,
    lr: float = 1e-3,
    start: float = 0.3,
    layer_wise: bool = True,
    batch_size: int = 16,
    split: str = "train",
    seed: int | None = None,
    progress: bool = True,
) -> Merged:
    """AdaMerging: task arithmetic whose coefficients are learned, so that the merged network is sure of its answers.

    θ* = θ₀ + Σ λᵢτᵢ, λ moved by Adam down the entropy of the predictions, averaged over the tasks, and held in [0, 1].
    A network can become surer without becoming better: compare `entropy` with the accuracy.
    The paper looks at the test images; here that has to be asked for (`split="test"`), and the audit says so.

    Args:
        pool: the base, experts, heads and data.
        images: of each task, the first ones; no labels are read.
        steps: of Adam; 0 is task arithmetic at `start`.
        lr: of Adam.
        start: every λ in the beginning, 0.3 in the paper; 1/T is the average.
        layer_wise: a λ per tensor and task; else one per task.
        batch_size: images of each task in a step.
        split: "train", "validation" or "test", which the audit then calls "test".
        seed: of the order of the images; the pool's own by default.
        progress: show a bar.

    Returns:
        As of `merge`; the λ of a tensor, in the order of `audit.experts`, is the fact "coefficients" of its row, and
        `audit.data_used` is "unlabelled".

    Raises:
        ApgdTeachError: the pool has no task, there is no such split, a number is out of range, or λ diverged.
        DataAccessError: it was called inside a merge.

    Source: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024, arXiv 2310.02575;
    Lesson: 07.
    """
    sets = _pictures("AdaMerging", pool, images, split)
    _check(_whole(steps, 0), f"steps={steps!r} is no number of steps; give a whole number, 0 or more")
    _check(_whole(batch_size, 1), f"batch_size={batch_size!r} is no number of images; give a whole number from 1")
    _check(0 < lr < math.inf, f"lr={lr!r} is no learning rate; give a positive number")
    _check(math.isfinite(start), f"start={start!r} is no coefficient; give a number, such as 0.3")
    network, heads = pool.encoder(), {task: pool.head(task) for task in sets}
    pictures = {task: part.images.to(pool.device) for task, part in sets.items()}
    base = {key: tensor.to(pool.device) for key, tensor in pool.base.items()}
    learned = dict(network.named_parameters())
    # What a BatchNorm has counted is no weight: no gradient goes there, and the average stands in.
    base |= {
        key: _mean([pool.experts[task][key] for task in sets], tensor).to(tensor)
        for key, tensor in base.items()
        if tensor.is_floating_point() and key not in learned
    }
    tau = {
        key: torch.stack([difference(base[key], pool.experts[task][key].to(pool.device)) for task in sets])
        for key in base
        if key in learned
    }
    rows = {key: row if layer_wise else 0 for row, key in enumerate(tau)}
    coefficients = torch.full((max(rows.values()) + 1, len(sets)), float(start), device=pool.device, requires_grad=True)

    def merged() -> dict[str, Tensor]:
        return {**base, **{key: base[key] + torch.tensordot(coefficients[rows[key]], tau[key], 1) for key in tau}}

    optimizer = torch.optim.Adam([coefficients], lr)
    draws = torch.Generator().manual_seed(pool.seed if seed is None else seed)
    with torch.enable_grad(), bar(steps, "step", "AdaMerging", progress) as told:
        for _ in range(steps):
            picked = [
                some[torch.randint(len(some), (batch_size,), generator=draws, device="cpu").to(pool.device)]
                for some in pictures.values()
            ]
            features = functional_call(network, merged(), (torch.cat(picked),)).split(batch_size)
            unsure = [_entropy(head(part)) for head, part in zip(heads.values(), features, strict=True)]
            optimizer.zero_grad()
            torch.stack(unsure).mean().backward()
            optimizer.step()
            with torch.no_grad():
                coefficients.clamp_(0, 1)
            told.update(1)
    _check(bool(coefficients.isfinite().all()), "the coefficients of AdaMerging diverged; give a smaller lr")
    found = coefficients.detach().cpu()
    with torch.no_grad():
        state = merged()
    facts: dict[str, _Fact] = {
        key: ("merge", "a coefficient for each task", {"coefficients": tuple(found[rows[key]].tolist())}) for key in tau
    }
    settings = {
        "images": images,
        "steps": steps,
        "lr": lr,
        "start": start,
        "layer_wise": layer_wise,
        "batch_size": batch_size,
        "split": split,
        "seed": pool.seed if seed is None else seed,
    }
    return _result(pool, "adamerging", settings, _ledger(split), state, facts)


@room("looking at a network's predictions")
@torch.no_grad()
def entropy(pool: Pool, state: StateDict, *, images: int = 256, split: str = "train") -> dict[str, float]:
    """How unsure a network is of its answers: mean entropy of its predictions (nats) per task; no labels are read.

    Args:
        pool: the heads and the data.
        state: an encoder's state dict.
        images: of each task, the first ones.
        split: "train", "validation" or "test".

    Raises:
        ApgdTeachError: the pool has no task, there is no such split, or `images` is out of range.

    Source: arXiv 2310.02575. Lesson: 07.
    """
    network = _loaded(pool, state)
    return {
        task: float(_entropy(pool.head(task)(network(part.images.to(pool.device)))))
        for task, part in _pictures("an entropy", pool, images, split).items()
    }


def joint(pool: Pool, recipe: Recipe | None = None, *, cache: Cache | None = None, progress: bool = True) -> Merged:
    """Joint training: the base trained on all tasks at once with their labels, under their frozen heads. The bound.

    It follows the experts' own recipe for as many steps as all of them took together, and a batch of that size holds
    equally many images of every task: so it sees as many images as the experts saw in all, and costs what they cost.

    Args:
        pool: the base, heads and data.
        recipe: another recipe; its steps are then all steps.
        cache: where to keep the network; the user's own cache folder by default.
        progress: show a bar and sentences.

    Returns:
        As of `merge`; `audit.data_used` is "labelled".

    Raises:
        ApgdTeachError: the pool has no task, or the training diverged.
        DataAccessError: it was called inside a merge.

    Lesson: 07.
    """
    refuse_data("the images that joint training learns from")
    _check(len(pool.tasks) > 0, "this pool has no task to learn from; make it with at least one")
    how = recipe or replace(pool.recipe, steps=pool.recipe.steps * len(pool.tasks))
    network = joint_network(pool, how, cache=cache, progress=progress)
    facts: dict[str, _Fact] = {key: ("train", "trained on all tasks at once", {}) for key in pool.base}
    return _result(pool, "joint", asdict(how), "labelled", network.tensors, facts)


@room("measuring statistics again")
@torch.no_grad()
def recalibrated(pool: Pool, merged: Merged, *, images: int = 256, split: str = "train") -> Merged:
    """The same weights, with the running statistics of every BatchNorm measured again on images of all tasks.

    A merge can only average what each expert measured in *its own* network on *its own* images. Here batches that hold
    equally many images of every task go through the merged network, and each BatchNorm keeps the mean over batches,
    each by its number of images, of what it sees. No labels are read, and no weight changes.

    Args:
        pool: the data, and the kind of network.
        merged: a merge of its experts.
        images: of each task, the first ones.
        split: "train", "validation" or "test", which the audit then calls "test".

    Returns:
        As of `merge`; `audit.data_used` is "unlabelled", or what `merged` used where that is more.

    Raises:
        ApgdTeachError: the network keeps no statistics, the pool has no task, there is no such split, or `images` is
            out of range.
        DataAccessError: it was called inside a merge.

    Source: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023, arXiv
    2211.08403, where statistics are measured again after averaging. Lesson: 08.
    """
    sets = _pictures("a recalibration", pool, images, split)
    network = _loaded(pool, merged.state_dict)
    norms = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    _check(len(norms) > 0, f"the network '{pool.network}' keeps no statistics, so there is nothing to measure again")
    for layer in norms.values():
        layer.reset_running_stats()
        layer.train()
    parts = [part.images.to(pool.device) for part in sets.values()]
    fewest = min(len(part) for part in parts)
    # As equal as can be: the variance of a batch of a few says little.
    batches, seen = math.ceil(fewest * len(parts) / 128), 0
    for some in torch.arange(fewest).tensor_split(batches):
        seen += len(some)
        for layer in norms.values():
            layer.momentum = len(some) / seen
        network(torch.cat([part[some.to(part.device)] for part in parts]))
    state = {key: tensor.cpu() for key, tensor in network.state_dict().items()}
    made = {key: state[key].to(base) for key, base in merged.state_dict.items()}

    def told(row: TensorRow) -> TensorRow:
        if row.name.rpartition(".")[0] not in norms or torch.equal(made[row.name], merged.state_dict[row.name]):
            return row
        base = pool.base[row.name]
        moved = norm(difference(base, made[row.name])) if base.is_floating_point() else 0.0
        reason = f"measured again on {fewest:,} images of each task"
        return replace(row, policy="train", reason=reason, update_norm=moved)

    used = max(merged.audit.data_used, _ledger(split), key=_weight)
    return Merged(made, replace(merged.audit, data_used=used, rows=tuple(map(told, merged.audit.rows))))


def _result(
    pool: Pool, method: str, settings: dict[str, object], data_used: str, state: StateDict, facts: dict[str, _Fact]
) -> Merged:
    """As `merge` gives it back, so that whatever takes a merge takes this."""
    experts = sorted(pool.experts)
    merged = {key: state[key].detach().to(base, copy=True) for key, base in pool.base.items()}
    rows = []
    for key, base in pool.base.items():
        floats = base.is_floating_point()
        other = (
            ("average", "no linear map whose inputs were seen") if floats else ("keep", "integers have no task vector")
        )
        policy, reason, more = facts.get(key, (*other, {}))
        moved = [norm(difference(base, pool.experts[task][key])) for task in experts] if floats else [0.0]
        update = norm(difference(base, merged[key])) if floats else 0.0
        rows.append(
            TensorRow(key, policy, reason, tuple(base.shape), norm(base), sum(moved) / len(moved), update, more)
        )
    audit = Audit(
        method=method,
        settings=settings,
        experts=tuple(experts),
        data_used=data_used,
        inputs={"base": fingerprint(pool.base), **{task: fingerprint(pool.experts[task]) for task in experts}},
        versions={"apgd_teach": __version__, "torch": str(torch.__version__)},
        rows=tuple(rows),
    )
    return Merged(merged, audit)


def _pictures(what: str, pool: Pool, images: int, split: str) -> dict[str, Split]:
    """The first images of every task, the tasks in the order of their names."""
    refuse_data(f"the images that {what} needs")
    _check(len(pool.tasks) > 0, "this pool has no task to look at; make it with at least one")
    _check(
        split in ("train", "validation", "test"),
        f"there is no split '{split}'; use 'train', 'validation' or 'test'",
    )
    _check(_whole(images, 1), f"images={images!r} is no number of images; give a whole number from 1")
    parts: dict[str, Split] = {task: getattr(pool.tasks[task], split) for task in sorted(pool.tasks)}
    return {task: part.first(images) for task, part in parts.items()}


def _ledger(split: str) -> str:
    """Images that accuracies are measured on are another matter than others, labels or not."""
    return "test" if split == "test" else "unlabelled"


def _weight(used: str) -> int:
    """How much a use of data weighs; what is not known weighs most."""
    known = ("none", "unlabelled", "labelled", "test")
    return known.index(used) if used in known else len(known)


def _check(fine: bool, sentence: str) -> None:
    if not fine:
        raise ApgdTeachError(f"{sentence}.")


def _whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _loaded(pool: Pool, state: StateDict) -> nn.Module:
    network = pool.encoder()
    network.load_state_dict(dict(state))
    return network


def _mean(tensors: list[Tensor], base: Tensor) -> Tensor:
    """The average in float64; integers are not averaged."""
    if not base.is_floating_point():
        return base
    return torch.stack([tensor.detach().cpu().double() for tensor in tensors]).mean(dim=0)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that is one linear map of its patches, with zeros around the picture."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What the kernel sees, place by place: (image, place, channel·kh·kw)."""
    return F.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)  # type: ignore[arg-type]


def _divide(left: Tensor, gram: Tensor, exact: bool) -> Tensor:
    """left · gram⁻¹; where it is singular, the solution that is zero in the directions without inputs.

    A Gram matrix that was shrunk is well-conditioned, and a Cholesky factor is far cheaper than a pseudo-inverse.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if exact or bool(failed):
        return left @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)
    return torch.cholesky_solve(left.T, factor).T


def _entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the predictions with these logits (image, class)."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()
