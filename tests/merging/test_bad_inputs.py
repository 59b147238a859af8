"""Everything that can be wrong with what a merge is given, declared once, through the Python call and file to file.

Each bad input is a change to a good one. Whatever it is: one sentence, nothing else raised, the inputs as they were,
and an output folder in which nothing has come, gone or changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apgd_teach.errors import ApgdTeachError, MergeError
from apgd_teach.merging import Average, merge
from apgd_teach.merging.stream import merge_files

NO_FILE = "memory has no files"
ONLY_TENSORS = "a safetensors file holds named tensors and nothing else"


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        what: in words; its first word is the category.
        sentence: regular expression that the whole error begins with.
        states: changes the good base and experts in place, before they are saved.
        given: from base and experts, as state dicts or as paths, to what is passed instead.
        files: changes the folder of saved files.
        call: the other arguments of both calls.
        options: those of the file-to-file call alone.
        not_in_memory, not_in_files: why it cannot be given to one of the two.
        raises: the class, exactly.
    """

    what: str
    sentence: str
    states: Callable[[dict, dict], object] = lambda base, experts: None
    given: Callable[[object, dict], tuple[object, object]] = lambda base, experts: (base, experts)
    files: Callable[[Path], object] = lambda folder: None
    call: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    not_in_memory: str = ""
    not_in_files: str = ""
    raises: type[Exception] = MergeError

    def __str__(self) -> str:
        return self.what


def put(who: str, key: object, value: Callable[[], object]) -> Callable[[dict, dict], None]:
    """A change: one value of the base, or of an expert."""

    def change(base: dict, experts: dict) -> None:
        (base if who == "base" else experts[who])[key] = value()

    return change


def rename(who: str, name: Callable[[str], str]) -> Callable[[dict, dict], None]:
    """A change: other names for an expert's tensors."""

    def change(base: dict, experts: dict) -> None:
        experts[who] = {name(key): tensor for key, tensor in experts[who].items()}

    return change


def everywhere(key: str, value: Callable[[], Tensor]) -> Callable[[dict, dict], None]:
    """A change: one value of them all."""

    def change(base: dict, experts: dict) -> None:
        for state in (base, *experts.values()):
            state[key] = value()

    return change


def poison(who: str, key: str, value: float) -> Callable[[dict, dict], None]:
    """A change: the last entry of one tensor."""

    def change(base: dict, experts: dict) -> None:
        (base if who == "base" else experts[who])[key].view(-1)[-1] = value

    return change


def untie(base: dict, experts: dict) -> None:
    for state in (base, *experts.values()):
        state["tied.weight"] = state["linear.weight"]
    experts["ben"]["tied.weight"] = experts["ben"]["linear.weight"] + 1


def overflow(base: dict, experts: dict) -> None:
    base["gain"].fill_(3e38)
    experts["ada"]["gain"].fill_(-3e38)


def truncate(name: str, size: int) -> Callable[[Path], None]:
    """A change: the end of a file is missing; a negative size counts from its end."""

    def change(folder: Path) -> None:
        path = folder / name
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def index(folder: Path) -> None:
    """An index beside the files, which speaks of a shard that is not there."""
    names = {"gain": "base.safetensors", "conv.weight": "model-2.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def returns(value: Callable[[Tensor], object]) -> object:
    """A method whose second layer goes wrong."""

    class Wrong:
        name = "wrong"

        def __call__(self, task_vectors: Tensor) -> object:
            return task_vectors[0] if task_vectors.shape[1] == 4 else value(task_vectors)

    return Wrong()


BAD = [
    # The experts
    Bad("experts: none", r"the experts are an empty dict; give at least one", given=lambda base, experts: (base, {})),
    Bad(
        "experts: a list",
        r"the experts are a list; give a dict of",
        given=lambda base, experts: (base, list(experts.values())),
    ),
    Bad("experts: nothing", r"the experts are a NoneType; give a dict of", given=lambda base, experts: (base, None)),
    Bad(
        "experts: one in place of a dict of them",
        r"the experts are (one state dict|a \w*Path); give a dict of",
        given=lambda base, experts: (base, experts["ada"]),
    ),
    Bad(
        "experts: one without a value",
        r"expert 'ben' is a NoneType( and no state dict; give model.state_dict|; give the path)",
        given=lambda base, experts: (base, {**experts, "ben": None}),
    ),
    Bad(
        "experts: a name that is no string",
        r"expert 1 has a name that is no string; use a string",
        given=lambda base, experts: (base, {1: experts["ada"]}),
    ),
    Bad(
        "experts: the name of the base",
        r"expert 'base' has the name that the audit gives the base; call it something else",
        given=lambda base, experts: (base, {"base": experts["ada"]}),
    ),
    # What is no state dict
    Bad(
        "structure: no base",
        r"base is a NoneType( and no state dict; give model.state_dict|; give the path)",
        given=lambda base, experts: (None, experts),
    ),
    Bad("structure: an empty base", r"base is empty; give model\.state_dict", lambda base, experts: base.clear()),
    Bad(
        "structure: an empty expert",
        r"expert 'ben' is empty; give model\.state_dict",
        lambda base, experts: experts["ben"].clear(),
    ),
    Bad(
        "structure: integers alone",
        r"base holds no tensor of floats; there is nothing to merge without",
        lambda base, experts: [
            [state.pop(key) for key in list(state) if key != "norm.num_batches_tracked"]
            for state in (base, *experts.values())
        ],
    ),
    Bad(
        "structure: a network",
        r"expert 'ada' is a Linear and no state dict; give model\.state_dict",
        given=lambda base, experts: (base, {"ada": nn.Linear(2, 2)}),
        not_in_files="what is given there is a path",
    ),
    Bad(
        "structure: a number among the tensors",
        r"expert 'ben', tensor 'gain' is a float; give model\.state_dict",
        put("ben", "gain", lambda: 1.0),
        not_in_files=ONLY_TENSORS,
    ),
    Bad(
        "structure: an array of numpy",
        r"expert 'ben', tensor 'linear\.weight' is a ndarray; give model\.state_dict",
        put("ben", "linear.weight", lambda: np.ones((3, 36))),
        not_in_files=ONLY_TENSORS,
    ),
    Bad(
        "structure: a checkpoint within a checkpoint",
        r"base, tensor 'state_dict' is a dict; give model\.state_dict",
        put("base", "state_dict", lambda: {"w": torch.ones(2)}),
        not_in_files=ONLY_TENSORS,
    ),
    Bad(
        "structure: a shape without values",
        r"expert 'ben', tensor 'gain' has a shape and no values \(device 'meta'\); load the weights",
        put("ben", "gain", lambda: torch.empty((), device="meta")),
        not_in_files="a file cannot be written without values",
    ),
    Bad(
        "structure: a sparse tensor",
        r"expert 'ben', tensor 'linear\.weight' is nested, complex, quantised or sparse; convert it",
        put("ben", "linear.weight", lambda: torch.ones(3, 36).to_sparse()),
        not_in_files=ONLY_TENSORS,
    ),
    Bad(
        "structure: a parameter without a shape",
        r"expert 'ben', tensor 'linear\.weight' has no shape yet; run the network once",
        put("ben", "linear.weight", nn.UninitializedParameter),
        not_in_files="a file cannot be written without shapes",
    ),
    # Keys
    Bad(
        "keys: one that is no string",
        r"expert 'ada' has the key 3, which is no string; name every tensor with a string",
        put("ada", 3, lambda: torch.ones(2)),
        not_in_files=ONLY_TENSORS,
    ),
    Bad(
        "keys: a missing tensor",
        r"expert 'ben' has no tensor 'gain', which the base has; only networks of one kind",
        lambda base, experts: experts["ben"].pop("gain"),
    ),
    Bad(
        "keys: another spelling",
        r"expert 'ben' has no tensor 'linear\.bias', which the base has; rename 'linear\.biases' if it is",
        rename("ben", lambda key: key.replace("linear.bias", "linear.biases")),
    ),
    Bad(
        "keys: a task head",
        r"expert 'cy' has a tensor 'head\.weight' that the base has not; take task heads out",
        put("cy", "head.weight", lambda: torch.ones(10, 3)),
    ),
    Bad(
        "keys: a prefix before all of them",
        r"expert 'ben' fits the base in 0 of 6 .*; its names begin with 'module\.', which the base's do not: take it",
        rename("ben", lambda key: f"module.{key}"),
    ),
    Bad(
        "keys: another network",
        r"expert 'ben' fits the base in 0 of 6 tensors by name and shape \(.*\); it is another network",
        rename("ben", lambda key: key[::-1]),
    ),
    Bad(
        "keys: an integer buffer is missing",
        r"expert 'ben' has no tensor 'norm\.num_batches_tracked', which the base has; only",
        lambda base, experts: experts["ben"].pop("norm.num_batches_tracked"),
    ),
    Bad(
        "keys: the second name of a tied tensor, left out of the base's file",
        r"expert 'ada' has a tensor 'head\.weight' that the base has not; if it is tied to 'linear\.weight', .* take",
        lambda base, experts: [state.update({"head.weight": state["linear.weight"]}) for state in experts.values()],
    ),
    Bad(
        "keys: a head of another size, and a policy that averages it",
        r"expert 'cy', tensor 'linear\.weight' has shape \(5, 36\) and the base has \(3, 36\); .* policy=\{'linear",
        put("cy", "linear.weight", lambda: torch.ones(5, 36)),
        call={"policy": {"linear.*": "average"}},
    ),
    # Shapes
    Bad(
        "shapes: a wider layer",
        r"expert 'ada', tensor 'conv\.weight' has shape \(8, 2, 3, 3\) and the base has \(4, 2, 3, 3\); only",
        put("ada", "conv.weight", lambda: torch.ones(8, 2, 3, 3)),
    ),
    Bad(
        "shapes: a transposed matrix",
        r"expert 'ada', tensor 'linear\.weight' has shape \(36, 3\) and the base has \(3, 36\); only",
        put("ada", "linear.weight", lambda: torch.ones(36, 3)),
    ),
    Bad(
        "shapes: one number in a vector for a scalar",
        r"expert 'ada', tensor 'gain' has shape \(1,\) and the base has \(\); only",
        put("ada", "gain", lambda: torch.ones(1)),
    ),
    # Dtypes
    Bad(
        "dtypes: integers for floats",
        r"expert 'cy', tensor 'linear\.weight' is torch\.int8 and the base is torch\.float32; floats and integers",
        put("cy", "linear.weight", lambda: torch.ones(3, 36, dtype=torch.int8)),
    ),
    Bad(
        "dtypes: floats for integers",
        r"expert 'cy', tensor 'norm\.num_batches_tracked' is torch\.float32 and the base is torch\.int64; floats",
        put("cy", "norm.num_batches_tracked", lambda: torch.tensor(7.0)),
    ),
    Bad(
        "dtypes: eight bits",
        r"expert 'cy', tensor 'linear\.weight' is torch\.float8_e4m3fn, which is too coarse to subtract; take",
        put("cy", "linear.weight", lambda: torch.ones(3, 36).to(torch.float8_e4m3fn)),
    ),
    Bad(
        "dtypes: complex",
        r"expert 'cy'.* tensor 'linear\.weight' (is nested, complex, .*; convert it|of dtype C64, which cannot be .*;)",
        put("cy", "linear.weight", lambda: torch.ones(3, 36, dtype=torch.complex64)),
    ),
    # Values
    Bad(
        "values: NaN in the first tensor of an expert",
        r"expert 'ben', tensor 'conv\.weight' holds NaN or infinity; take an earlier checkpoint",
        poison("ben", "conv.weight", float("nan")),
    ),
    Bad(
        "values: infinity in the base",
        r"base, tensor 'linear\.weight' holds NaN or infinity; take an earlier checkpoint",
        poison("base", "linear.weight", float("inf")),
    ),
    Bad(
        "values: a mask of minus infinity in all of them",
        r"base, tensor 'mask' holds infinity, and so do all the experts; if it is a mask .* policy=\{'mask': 'keep'\}",
        everywhere("mask", lambda: torch.full((4, 4), -torch.inf).triu(1)),
    ),
    Bad(
        "values: what is kept and the dtype of the output cannot hold",
        r"tensor 'mask' of the merge has values that torch\.float16 cannot hold; make the update smaller",
        everywhere("mask", lambda: torch.tensor([[-torch.inf, -1e38], [0.0, 0.0]])),
        call={"policy": {"mask": "keep"}},
        options={"dtype": "float16"},
        not_in_memory="the result has the base's dtypes",
    ),
    Bad(
        "values: minus infinity in a vector",
        r"expert 'cy', tensor 'linear\.bias' holds NaN or infinity; take an earlier checkpoint",
        poison("cy", "linear.bias", -float("inf")),
    ),
    Bad(
        "values: NaN in half precision",
        r"expert 'ada', tensor 'half' holds NaN or infinity; take an earlier checkpoint",
        lambda base, experts: [
            everywhere("half", lambda: torch.ones(3, dtype=torch.bfloat16))(base, experts),
            poison("ada", "half", float("nan"))(base, experts),
        ],
    ),
    Bad(
        "values: a sum that the dtype cannot hold",
        r"tensor 'gain' of the merge has values that torch\.float32 cannot hold; make the update smaller",
        overflow,
    ),
    # Ties
    Bad(
        "ties: one tensor in the base, two in an expert",
        r"expert 'ben', tensor 'tied\.weight' differs from its 'linear\.weight', and the base has the two tied; tie",
        untie,
        not_in_files="a file holds every tensor apart, so nothing is tied",
    ),
    Bad(
        "ties: two actions for one tensor",
        r"the policy says 'keep' for 'linear\.weight' and 'average' for 'tied\.weight', which are one tensor .*; say",
        lambda base, experts: [
            state.update({"tied.weight": state["linear.weight"]}) for state in (base, *experts.values())
        ],
        call={"policy": {"linear.*": "keep", "tied.*": "average"}},
        not_in_files="a file holds every tensor apart, so nothing is tied",
    ),
    # The policy
    Bad(
        "policy: a pattern that matches nothing",
        r"the policy's pattern 'haed\.\*' matches no tensor; the nearest names are '",
        call={"policy": {"haed.*": "keep"}},
    ),
    Bad(
        "policy: the average of what only an expert has",
        r"the policy's pattern 'head\.\*' matches no tensor; the nearest names are '",
        lambda base, experts: [
            state.update({"head.bias": torch.ones(2, dtype=torch.int64)}) for state in experts.values()
        ],
        call={"policy": {"head.*": "average"}},
    ),
    Bad(
        "policy: no such action",
        r"the policy of 'linear\.\*' is 'drop'; use one of: merge, average, keep",
        call={"policy": {"linear.*": "drop"}},
    ),
    Bad("policy: no dict", r"the policy is a list; give a dict of patterns", call={"policy": ["linear.*"]}),
    Bad(
        "policy: a pattern that is no string",
        r"the policy has the pattern 3, which is no string; give patterns",
        call={"policy": {3: "keep"}},
    ),
    Bad(
        "policy: a bias as a matrix",
        r"the policy 'linear\.bias': 'merge' meets only .*: a vector or scalar: .*; average it",
        call={"policy": {"linear.bias": "merge"}},
    ),
    Bad(
        "policy: the mean of a counter",
        r"the policy '\*\.num_batches_tracked': 'average' meets only .*: integers have no task vector; keep it",
        call={"policy": {"*.num_batches_tracked": "average"}},
    ),
    # The method
    Bad("method: no such name", r"there is no method 'averge'; use one of: average", call={"method": "averge"}),
    Bad("method: a class", r"Average is a class; give an instance of it", call={"method": Average}),
    Bad("method: no method", r"a int is no method; give a name", call={"method": 3}),
    Bad(
        "method: a setting that it has not",
        r"'average' has no setting 'scale'; it has: none",
        call={"method": "average", "scale": 2},
    ),
    Bad(
        "method: a setting out of range",
        r"method 'ties' has trim = 2; give a number above 0 and of at most 1",
        call={"method": "ties", "trim": 2},
    ),
    Bad(
        "method: a setting that is no number",
        r"method 'task_arithmetic' has coefficient = 'much'; give a",
        call={"method": "task_arithmetic", "coefficient": "much"},
    ),
    Bad(
        "method: settings beside an instance",
        r"settings \(scale\) were given beside an instance of Average; put them into",
        call={"method": Average(), "scale": 2},
    ),
    Bad(
        "method: an update of another shape",
        r"method 'wrong' returned shape \(36, 3\) for tensor 'linear\.weight'; it must return a finite tensor",
        call={"method": returns(lambda tau: tau[0].T)},
    ),
    Bad(
        "method: an update of NaN",
        r"method 'wrong' returned NaN or infinity for tensor 'linear\.weight'; it must return a finite tensor",
        call={"method": returns(lambda tau: tau[0] * float("nan"))},
    ),
    Bad(
        "method: no update",
        r"method 'wrong' returned a NoneType for tensor 'linear\.weight'; it must return a finite tensor",
        call={"method": returns(lambda tau: None)},
    ),
    # Files
    Bad(
        "files: none of this name",
        r"expert 'ben': there is no file or folder '.*ben\.safetensors'; check the path",
        files=lambda folder: (folder / "ben.safetensors").unlink(),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: the last bytes are missing",
        r"expert 'ben': '.*' is cut off: it has [\d,]+ bytes and its header says [\d,]+; download",
        files=truncate("ben.safetensors", -4),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: cut off within the header",
        r"base: '.*' is cut off within its header, at 40 bytes; download",
        files=truncate("base.safetensors", 40),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an empty one",
        r"expert 'ben': '.*' is empty; download or save it again",
        files=truncate("ben.safetensors", 0),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: something else under this name",
        r"expert 'ben': '.*' is no safetensors file; download or save it again",
        files=write("ben.safetensors", b"nothing of the kind"),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: a pickle under this name",
        r"expert 'ben': '.*' is a PyTorch pickle under another name; load it with torch\.load",
        files=write("ben.safetensors", pickle.dumps({"w": 1}, protocol=2)),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: a folder with several",
        r"base: the folder '.*' holds several checkpoints \('ada\.safetensors', .*\); give the file itself",
        given=lambda base, experts: (base.parent, experts),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an index without one of its shards",
        r"base: '.*' names the file 'model-2\.safetensors', which is missing; download it too",
        files=index,
        given=lambda base, experts: (base.parent / "m.safetensors.index.json", experts),
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an output of another kind",
        r"out: '.*merged\.pt' ends in \.pt; give a name ending in \.safetensors",
        options={"out": "merged.pt"},
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an output in a folder that there is not",
        r"out: there is no folder '.*nowhere'; make it first",
        options={"out": "nowhere/merged.safetensors"},
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an output that is an input",
        r"out: '.*ada\.safetensors' is one of the inputs, which are never changed; give another name",
        options={"out": "../in/ada.safetensors"},
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: an output folder that is not empty",
        r"out: the folder '.*' is not empty; give a new one",
        options={"out": "../out"},
        not_in_memory=NO_FILE,
    ),
    Bad(
        "files: a dtype that is no float",
        r"'int8' is no dtype to write a merge in; use one of: float32",
        options={"dtype": "int8"},
        not_in_memory="the result has the base's dtypes",
    ),
    Bad(
        "files: values that the dtype of the output cannot hold",
        r"tensor 'gain' of the merge has values that torch\.float16 cannot hold; make the update smaller",
        lambda base, experts: [state["gain"].fill_(1e6) for state in (base, *experts.values())],
        options={"dtype": "float16"},
        not_in_memory="the result has the base's dtypes",
    ),
    Bad(
        "files: no workers",
        r"workers is 0; give a whole number, 1 or more",
        options={"workers": 0},
        not_in_memory="the Python call has no workers",
    ),
    Bad(
        "files: no such device",
        r"'abacus' is not a device; use 'auto', 'cpu'",
        options={"device": "abacus"},
        not_in_memory="tensors are merged where they are",
        raises=ApgdTeachError,  # the sentence of the whole package for devices
    ),
]

IN_MEMORY = [bad for bad in BAD if not bad.not_in_memory]
IN_FILES = [bad for bad in BAD if not bad.not_in_files]


def prints(value: object) -> object:
    """What a value is, to the last bit, so that two looks at it can be compared."""
    if isinstance(value, Mapping):
        return [(key, prints(one)) for key, one in value.items()]
    if isinstance(value, list):
        return [prints(one) for one in value]
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        lazy = isinstance(value, nn.UninitializedParameter)
        return id(value), value._version, None if lazy else value.reshape(-1).view(torch.uint8).numpy().tobytes()
    return id(value)


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below, hidden ones too, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def one_sentence(error: pytest.ExceptionInfo, bad: Bad) -> None:
    said = str(error.value)
    assert error.type is bad.raises
    assert "\n" not in said
    assert "; " in said, "what to do is missing"


def test_the_list_is_long_enough_and_covers_what_it_should() -> None:
    categories = {bad.what.split(":")[0] for bad in BAD}
    assert categories == {
        "experts", "structure", "keys", "shapes", "dtypes", "values", "ties", "policy", "method", "files",
    }  # fmt: skip
    assert len({bad.what for bad in BAD}) == len(BAD)
    assert len([bad for bad in BAD if not bad.not_in_memory and not bad.not_in_files]) >= 25


def test_what_the_bad_inputs_are_changes_of_is_good(base, experts, tmp_path) -> None:
    merge(base, experts)
    paths = saved(base, experts, tmp_path)
    merge_files(paths[0], paths[1], tmp_path / "merged.safetensors", progress=False)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_policy_keeps_may_be_anything_in_the_experts_in_memory_and_in_files(
    base, experts, tmp_path, workers: int
) -> None:
    body, pure = merge(base, experts, "ties").state_dict, {name: dict(state) for name, state in experts.items()}
    base.update({"head.weight": torch.ones(4, 3), "mask": torch.full((4, 4), -torch.inf).triu(1)})
    pure["ada"].update({"head.weight": torch.ones(7, 3), "mask": base["mask"]})
    pure["ben"].update({"head.weight": torch.ones(4, 3, dtype=torch.int32), "head.bias": torch.ones(4)})
    call = {"method": "ties", "policy": {"head.*": "keep", "mask": "keep"}}
    merged = merge(base, pure, **call)
    paths = saved(base, pure, tmp_path)
    audit = merge_files(*paths, tmp_path / "merged.safetensors", progress=False, workers=workers, **call)
    written = load_file(tmp_path / "merged.safetensors")
    assert written.keys() == merged.state_dict.keys() == base.keys()
    for key, one in {**base, **body}.items():
        assert torch.equal(merged.state_dict[key], one)
        assert torch.equal(written[key], one)
    assert audit.warnings == merged.audit.warnings == ()
    assert sorted(audit.rows, key=lambda row: row.name) == sorted(merged.audit.rows, key=lambda row: row.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", IN_MEMORY, ids=str)
def test_a_bad_input_to_the_python_call_is_one_sentence_and_stays_as_it_was(bad: Bad, base, experts) -> None:
    bad.states(base, experts)
    given = bad.given(base, experts)
    before = prints([base, experts])
    with pytest.raises(ApgdTeachError, match=f"^{bad.sentence}") as error:
        merge(*given, **bad.call)
    one_sentence(error, bad)
    assert prints([base, experts]) == before


def saved(base, experts, folder: Path) -> tuple[Path, dict[str, Path]]:
    """The state dicts as files."""
    folder.mkdir(exist_ok=True)
    for name, state in {"base": base, **experts}.items():
        # In memory of their own, as safetensors wants them.
        save_file({key: one.clone().contiguous() for key, one in state.items()}, folder / f"{name}.safetensors")
    return folder / "base.safetensors", {name: folder / f"{name}.safetensors" for name in experts}


@pytest.mark.parametrize("bad", IN_FILES, ids=str)
def test_a_bad_input_to_the_merge_of_files_is_one_sentence_and_changes_no_folder(
    bad: Bad, base, experts, tmp_path: Path
) -> None:
    bad.states(base, experts)
    paths = saved(base, experts, tmp_path / "in")
    bad.files(tmp_path / "in")
    given = bad.given(*paths)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("of somebody else")
    options = {"progress": False, **bad.call, **bad.options}
    target = out / str(options.pop("out", "merged.safetensors"))
    for earlier, workers in ((None, 1), (b"an earlier merge", 2)):
        if earlier is not None and target.parent == out and target.suffix:
            target.write_bytes(earlier)
        before = listing(tmp_path)
        with pytest.raises(ApgdTeachError, match=f"^{bad.sentence}") as error:
            merge_files(*given, target, **{"workers": workers, **options})
        one_sentence(error, bad)
        assert listing(tmp_path) == before
