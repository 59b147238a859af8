"""The policy of a network whose modules are at hand: their types say what shapes do not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import Spec
from apgd_teach.merging.policy import Action, Decision, decide

__all__ = ["policy_of"]

_TYPES: tuple[tuple[tuple[type[nn.Module], ...], str, str], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), "average", "an embedding: its rows are looked up, not multiplied"),
    ((_ConvTransposeNd,), "average", "a transposed convolution: its first axis is the input"),
    ((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), "average", "a scale or shift of a normalisation layer"),
    ((nn.MultiheadAttention,), "merge", "projections of attention"),
    ((nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase), "merge", "a weight"),
)
"""The first type that fits wins: a transposed convolution is a convolution too."""


def policy_of(module: nn.Module, others: str = "average") -> dict[str, str]:
    """A policy for `module.state_dict()` from the types of its modules, to be passed as `policy`, changed or not.

    Weights of linear, convolutional, recurrent and attention layers are merged. Embeddings, transposed convolutions
    and normalisation layers follow `others`, and so does a matrix that belongs to none of these types: which of its
    axes is the output cannot be known. Everything else is as the shapes have it. Write `{"head.*": "keep",
    **policy_of(network)}` to overrule it: the first pattern that matches wins.

    Args:
        module: the network. Its values are not read, so it may be on the device 'meta'.
        others: "average", or "keep" for what no method works on to stay as the base has it.

    Returns:
        by name of every tensor: the action, with its reason (`Action`).

    Raises:
        MergeError: a parameter has no shape yet.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    state = {name: one for name, one in module.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
    for name, one in state.items():
        if is_lazy(one):
            raise MergeError(f"the network's '{name}' has no shape yet; run the network once on an input.")
    shapes = decide({name: Spec(tuple(one.shape), one.dtype) for name, one in state.items()}, others=others)
    policy = {name: _by_type(module, name, decision, others) for name, decision in shapes.items()}
    for name, one in state.items():
        tied = [other for other in state if state[other] is one and policy[other].action != "merge"]
        if tied and tied[0] != name:  # an embedding that is the output layer too
            policy[name] = Decision(policy[tied[0]].action, f"tied to '{tied[0]}'")
    return {name: Action(decision.action, decision.reason) for name, decision in policy.items()}


def _by_type(module: nn.Module, name: str, by_shape: Decision, others: str) -> Decision:
    """What a type makes of a tensor that its shape alone would merge."""
    if by_shape.action != "merge":
        return by_shape
    try:
        owner = module.get_submodule(name.rpartition(".")[0])
    except AttributeError:  # a state dict under names of its own
        return Decision(others, "no module of this name: which axis is the output is not known")
    kind = type(owner).__name__
    for types, action, reason in _TYPES:
        if isinstance(owner, types):
            return Decision("merge" if action == "merge" else others, f"{reason} ({kind})")
    return Decision(others, f"a parameter of {kind}: which axis is the output is not known")
