"""What a method of one's own may ask for and give back, and what the caller's own switches may not change."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import METHODS, Audit, Layer, Update, merge, merge_files, preflight


def mine(call: Callable[..., object], **attributes: object) -> Any:
    """A method called 'mine' that is nothing but its call and attributes."""
    return type("Mine", (), {"name": "mine", "__call__": call, **attributes})()


# Its facts


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (2.5, 2.5),
        ("median", "median"),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1.0, 2.0, 6.0]), (1.0, 2.0, 6.0)),
        (torch.tensor([1.0, 2.0, 6.0], dtype=torch.bfloat16), (1.0, 2.0, 6.0)),
        (tuple(torch.tensor([1.0, 2.0, 6.0])), (1.0, 2.0, 6.0)),
        (np.float32(2.5), 2.5),
        (np.array([1.0, 2.0, 6.0]), (1.0, 2.0, 6.0)),
        ([1.0, 2.0, 6.0], (1.0, 2.0, 6.0)),
        ([np.float64(1), 2, torch.tensor(6)], (1.0, 2.0, 6.0)),
    ],
)
def test_a_fact_in_any_form_of_numbers_is_kept_as_numbers(base, experts, given, kept) -> None:
    audit = merge(base, experts, mine(lambda self, tau: Update(tau[0], {"found": given}))).audit
    facts = [row.facts["found"] for row in audit.rows if row.policy == "merge"]
    assert facts == [kept, kept]
    assert type(facts[0]) is type(kept)
    assert Audit.from_json(audit.to_json()).details().rows == audit.details().rows
    if isinstance(kept, tuple):
        assert audit.details().column("found") == [3.0, 3.0]
        assert audit.tasks().column("found") == [1.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (None, r"the facts are a NoneType; give a dict"),
        ([1], r"the facts are a list; give a dict"),
        ({1: 2.0, "a": 1.0}, r"a fact has the name 1, which is no string"),
        ({"task_norms": (5.0,)}, r"the fact 'task_norms' is measured by the merge itself; call yours something else"),
        ({"gap_left": 1.0}, r"the fact 'gap_left' is measured by the merge itself"),
        ({"coefficients": ("a", "b", "c")}, r"the fact 'coefficients' is a tuple of other things; give a number, a"),
        ({"found": None}, r"the fact 'found' is a NoneType; give a number, a number per task, or a word"),
        ({"found": 1j}, r"the fact 'found' is a complex"),
        ({"found": {"a": 1}}, r"the fact 'found' is a dict"),
        ({"found": torch.ones(3, 2)}, r"the fact 'found' is a Tensor of shape \(3, 2\) and torch\.float32"),
        ({"found": torch.ones(3, device="meta")}, r"the fact 'found' is a Tensor of shape \(3,\)"),
        ({"found": np.ones((3, 2))}, r"the fact 'found' is a ndarray of shape \(3, 2\) and float64"),
    ],
)
def test_what_is_no_fact_gets_its_sentence(base, experts, facts, sentence: str) -> None:
    def call(self: object, tau: Tensor) -> Update:
        # The first layer goes well: the sentence must name the second.
        return Update(tau[0], {} if tau.shape[1] == 4 else facts)

    with pytest.raises(MergeError, match=rf"method 'mine', tensor 'linear\.weight': {sentence}"):
        merge(base, experts, mine(call))


def test_the_names_that_are_refused_are_those_that_the_merge_gives(base, experts) -> None:
    from apgd_teach.merging.method import ENGINE_FACTS

    row = merge(base, experts, "average").audit.rows[0]
    assert sorted(row.facts) == sorted(ENGINE_FACTS)


# What it asks for


@pytest.mark.parametrize(
    "call",
    [
        lambda self, tau, layer: tau[0] * (layer.name != ""),
        lambda self, tau, *, layer: tau[0] * (layer.name != ""),
        lambda self, tau, /, layer: tau[0] * (layer.name != ""),
        lambda self, tau, layer, /: tau[0] * (layer.name != ""),
        lambda self, tau, signed=False, layer=None: tau[0] * (layer.name != "" and not signed),
        lambda self, tau, signed=False: tau[0] * (signed is False),
        lambda self, tau, *more: tau[0] * (more == ()),
        lambda self, tau, **more: tau[0] * (more == {}),
        lambda self, *all_of_it: all_of_it[0][0] * (len(all_of_it) == 1),
    ],
)
def test_the_layer_goes_to_an_argument_of_that_name_and_to_no_other(base, experts, call) -> None:
    merged = merge(base, experts, mine(call)).state_dict["linear.weight"]
    torch.testing.assert_close(merged, experts["ada"]["linear.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda self, tau, scale: tau[0], "wants 'scale' beside the task vectors"),
        (lambda self, tau, layer, *, scale: tau[0], "wants 'scale' beside the task vectors"),
        (lambda self: torch.zeros(()), "takes no task vectors"),
        (lambda self, *, tau: tau[0], "takes no task vectors"),
    ],
)
def test_a_method_that_wants_what_nobody_gives_is_refused_before_the_work(base, experts, call, said: str) -> None:
    with pytest.raises(MergeError, match=rf"method 'mine' {said}; it is called as method\(task_vectors\)"):
        merge(base, experts, mine(call))


@pytest.mark.parametrize("trim", [30, 0, -0.2, float("nan"), True, "0.3"])
def test_a_trim_that_is_no_share_gets_its_sentence(base, experts, trim) -> None:
    method = mine(lambda self, tau, layer: tau[0], trim=trim)
    with pytest.raises(MergeError, match=rf"method 'mine' has trim = {trim!r}; give a (finite )?number above 0 and of"):
        merge(base, experts, method)


def test_a_method_that_writes_into_its_thresholds_changes_no_other_layer(base, experts) -> None:
    seen = []

    def call(self: object, tau: Tensor, layer: Layer) -> Tensor:
        seen.append(layer.thresholds.clone())
        layer.thresholds.zero_()
        return tau[0]

    merge(base, experts, mine(call, trim=0.3))
    assert bool((seen[0] > 0).all())
    assert torch.equal(seen[0], seen[1])


def test_a_method_that_optimises_switches_gradients_on_itself(base, experts) -> None:
    def call(self: object, tau: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            update = torch.zeros_like(tau[0], requires_grad=True)
            (gradient,) = torch.autograd.grad((tau - update).square().sum() / 2, update)
        return update - gradient / len(tau)

    with torch.inference_mode():
        merged, average = merge(base, experts, mine(call)).state_dict, merge(base, experts).state_dict
    torch.testing.assert_close(merged["linear.weight"], average["linear.weight"])


# What goes wrong in it


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before Python 3.11")
def test_an_error_of_its_own_says_where_it_was_raised(base, experts) -> None:
    def call(self: object, tau: Tensor) -> Tensor:
        return tau[0] if tau.shape[1] == 4 else tau @ tau

    with pytest.raises(RuntimeError) as caught:
        merge(base, experts, mine(call))
    assert caught.value.__notes__ == ["in method 'mine', tensor 'linear.weight', task vectors of shape (3, 3, 36)"]


def test_a_setting_that_cannot_be_copied_is_recorded_by_its_type(base, experts) -> None:
    @dataclass(frozen=True)
    class Scale:
        by: float = 0.5

    @dataclass(frozen=True)
    class Locked:
        lock: Any = field(default_factory=threading.Lock)
        scale: Scale = Scale()
        names: tuple[str, ...] = ("a",)
        name: ClassVar[str] = "locked"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return self.scale.by * task_vectors[0]

    audit = merge(base, experts, Locked()).audit
    assert audit.settings == {"lock": "<lock>", "scale": {"by": 0.5}, "names": ("a",)}
    assert '"lock": "<lock>"' in audit.to_json()


# What the caller has switched on


@pytest.mark.parametrize("name", METHODS)
def test_autocast_around_a_merge_changes_nothing(base, experts, name: str) -> None:
    settings = {"steps": 3} if name == "apgd_published" else {}
    plain = merge(base, experts, name, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        inside = merge(base, experts, name, **settings)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(inside.state_dict[key], one) for key, one in plain.state_dict.items())
    assert inside.audit.to_json() == plain.audit.to_json()


def test_autocast_around_a_preflight_changes_nothing(base, experts) -> None:
    for name, state in experts.items():
        experts[name] = {key: 123.4 * one if one.is_floating_point() else one for key, one in state.items()}
    report = preflight(base, experts)
    with torch.autocast("cpu", torch.bfloat16):
        assert preflight(base, experts) == report


@pytest.mark.parametrize("name", METHODS)
def test_a_default_device_changes_nothing(base, experts, tmp_path, name: str) -> None:
    settings = {"steps": 3} if name == "apgd_published" else {}
    plain = merge(base, experts, name, **settings)
    paths = {one: tmp_path / f"{one}.safetensors" for one in ("base", *experts)}
    for one, state in {"base": base, **experts}.items():
        save_file(state, paths[one])
    inputs = paths.pop("base"), paths, tmp_path / "merged.safetensors"
    torch.set_default_device("meta")
    try:
        inside = merge(base, experts, name, **settings)
        merge_files(*inputs, name, workers=1, device="cpu", progress=False, **settings)
    finally:
        torch.set_default_device(None)
    written = load_file(inputs[2])
    for key, one in plain.state_dict.items():
        assert torch.equal(inside.state_dict[key], one)
        assert torch.equal(written[key], one)
    assert inside.audit.to_json() == plain.audit.to_json()


def test_tensors_that_a_method_makes_lie_where_its_task_vectors_do(base, experts) -> None:
    with torch.device("meta"):
        merged = merge(base, experts, mine(lambda self, tau: torch.ones(tau.shape[1:]))).state_dict
    torch.testing.assert_close(merged["linear.weight"], base["linear.weight"] + 1)


def test_inference_mode_around_a_merge_changes_nothing(base, experts, tmp_path) -> None:
    paths = {one: tmp_path / f"{one}.safetensors" for one in ("base", *experts)}
    for one, state in {"base": base, **experts}.items():
        save_file(state, paths[one])
    plain = merge(base, experts, "ties")
    with torch.inference_mode():
        inside = merge(base, experts, "ties")
        merge_files(paths.pop("base"), paths, tmp_path / "merged.safetensors", "ties", workers=1, progress=False)
    written = load_file(tmp_path / "merged.safetensors")
    for key, one in plain.state_dict.items():
        assert torch.equal(inside.state_dict[key], one)
        assert torch.equal(written[key], one)
    assert inside.audit.to_json() == plain.audit.to_json()
