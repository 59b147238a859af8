"""`check`, `merge`, `report`, `completion`: real files, as a person would give them."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.cli import main, make_parser
from apgd_teach.devices import pick_device
from apgd_teach.errors import MergeError
from apgd_teach.files import hidden_beside
from apgd_teach.merging import METHODS, Audit, low_rank, merge
from apgd_teach.own import options
from apgd_teach.own.inputs import named

State = dict[str, Tensor]
BASH = Path("/bin/bash")
HERE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def network(seed: int, by: float = 0.0, like: State | None = None) -> State:
    draw = torch.Generator().manual_seed(seed)
    if like is not None:
        return {name: one + by * torch.randn(one.shape, generator=draw) for name, one in like.items()}
    shapes = {"a.weight": (24, 16), "a.bias": (24,), "b.weight": (16, 24), "head.weight": (5, 16)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and three experts in folders of their own, as models come."""
    base = network(0)
    save_file(base, tmp_path / "base.safetensors")
    for place, name in enumerate(("ada", "ben", "cleo")):
        (tmp_path / name).mkdir()
        save_file(network(place + 1, 0.1, base), tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPERTS = ("ada", "ben", "cleo/model.safetensors")


def test_the_names_of_the_methods_are_those_of_the_registry() -> None:
    assert sorted(options.METHODS) == sorted(METHODS)


def test_check_says_what_would_happen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "base.safetensors", *EXPERTS, "--policy", "head.*=keep"]) == 0
    said = capsys.readouterr().out
    assert "Pre-flight: can be merged" in said
    assert "Tensors: 2 merged, 1 averaged, 1 kept as the base has them (head.weight)." in said
    for name in ("ada", "ben", "cleo"):
        assert re.search(rf"^{name} +\S*model.safetensors +4 ", said, re.MULTILINE), said
    assert sorted(one.name for one in folder.iterdir()) == ["ada", "base.safetensors", "ben", "cleo"]


def test_check_says_what_is_wrong_with_its_exit_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.zeros(24, 16)}, folder / "odd.safetensors")
    assert main(["check", "base.safetensors", "ada", "odd.safetensors"]) == 1
    said = capsys.readouterr().out
    assert "cannot be merged" in said
    assert "expert 'odd'" in said
    assert main(["check", "base.safetensors", "ada", "odd.safetensors", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {one["level"] for one in found["findings"]} == {"error"}


def test_merge_writes_what_the_library_computes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [argument for end in ("json", "md", "html") for argument in ("--report", f"audit.{end}")]
    given = ["base.safetensors", *EXPERTS, "--method", "apgd", "--set", "flatten=0.5", "--policy", "head.*=keep"]
    assert main(["merge", *given, "--out", "merged.safetensors", *reports]) == 0
    said = capsys.readouterr()
    experts = {name: load_file(folder / name / "model.safetensors") for name in ("ada", "ben", "cleo")}
    expected = merge(load_file("base.safetensors"), experts, "apgd", flatten=0.5, policy={"head.*": "keep"})
    found = load_file("merged.safetensors")
    assert all(torch.equal(found[name], one) for name, one in expected.state_dict.items())
    audit = Audit.from_json(Path("audit.json").read_text())
    assert audit.output is not None
    assert audit.output.sha256 in said.out
    assert "3 of 4 tensors merged by apgd, data used: none." in said.out
    assert audit.given_policy == (("head.*", "keep"),)
    assert audit.settings["flatten"] == 0.5
    assert Path("audit.md").read_text() == audit.to_markdown()
    page = Path("audit.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    for name in experts:
        assert audit.inputs[name] in page


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    given = [
        "merge",
        "base.safetensors",
        *EXPERTS,
        "--out",
        "merged.safetensors",
        "--report",
        "audit.json",
        "--dry-run",
    ]
    assert main(given) == 0
    assert capsys.readouterr().out.endswith("Nothing was computed or written.\n")
    assert sorted(folder.rglob("*")) == before
    for wrong, says in (
        (["--out", "nowhere/merged.safetensors"], "there is no folder 'nowhere'"),
        (["--set", "flaten=0.5"], "'apgd' has no setting 'flaten'"),
        (["--report", "audit.pdf"], "a report goes into a file that ends in .json, .md, .html"),
        (["--report", "nowhere/audit.json"], "there is no folder 'nowhere' for the report"),
        (["--set", "policy=1"], "'policy' is no setting of a method"),
        (["--set", "engine=1"], "'engine' is no setting of a method"),
        (["--scheduler", "tcp://x"], "--scheduler is for --engine dask"),
        (["--out", "base.safetensors"], "is one of the inputs, which are never changed"),
    ):
        assert main([*given, *wrong]) == 1
        said = capsys.readouterr()
        assert says in said.err
        assert len(said.err.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("method", ["apgd", "ties", "tsv_m"])
def test_three_workers_write_the_bytes_that_one_writes(folder: Path, method: str) -> None:
    given = ["merge", "base.safetensors", *EXPERTS, "--method", method]
    assert main([*given, "--workers", "1", "--out", "one.safetensors", "--report", "one.json"]) == 0
    assert main([*given, "--workers", "3", "--out", "three.safetensors", "--report", "three.json"]) == 0
    assert Path("one.safetensors").read_bytes() == Path("three.safetensors").read_bytes()
    one, three = (Audit.from_json(Path(name).read_text()).output for name in ("one.json", "three.json"))
    assert one is not None
    assert three is not None
    assert one.sha256 == three.sha256


def test_the_device_that_is_named_computes(folder: Path) -> None:
    given = ["merge", "base.safetensors", *EXPERTS]
    for device in ("cpu", "auto"):
        out = f"{device}.safetensors"
        assert main([*given, "--device", device, "--out", out, "--report", f"{device}.json"]) == 0
        assert Audit.from_json(Path(f"{device}.json").read_text()).device == str(pick_device(device))
    assert main([*given, "--out", "unsaid.safetensors"]) == 0
    assert Path("cpu.safetensors").read_bytes() == Path("unsaid.safetensors").read_bytes()
    found = load_file("auto.safetensors")
    for name, tensor in load_file("cpu.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


ABSENT = next((name for name, here in HERE.items() if not here), None)


@pytest.mark.skipif(ABSENT is None, reason="this machine has every device that can be named")
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_device_that_is_not_there_is_one_sentence_and_nothing_is_written(
    folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--report", "audit.json", *more]
    assert main([*given, "--device", str(ABSENT)]) == 1
    said = capsys.readouterr()
    assert said.err == f"this machine has no device '{ABSENT}'; use 'auto' or 'cpu'.\n"
    assert not said.out
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize("workers", ["0", "-2"])
def test_no_workers_are_one_sentence_and_nothing_is_written(
    folder: Path, workers: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--workers", workers]
    assert main([*given, *more]) == 1
    said = capsys.readouterr().err
    assert said == f"workers is {workers}; give a whole number, 1 or more.\n"
    assert sorted(folder.rglob("*")) == before


EVALUATION = """
import torch

inputs = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))


def evaluate(state, task):
    answers = (inputs @ state["a.weight"].T + state["a.bias"]).argmax(dim=1)
    return answers % 3, torch.arange(60) % 3


nothing = 3
"""


def test_an_evaluation_that_is_brought_is_asked_and_stands_in_the_card(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_eval.py").write_text(EVALUATION)
    about = {
        "title": "Three in one",
        "purpose": "a test",
        "classes": {"ada": ["red", "green", "blue"]},
        "sources": {"ada": {"data": "two weeks of calls", "licence": "internal"}},
    }
    Path("about.json").write_text(json.dumps(about))
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--evaluate", "my_eval.py"]
    assert main([*given, "--card", "card.md", "--about", "about.json"]) == 0
    said = capsys.readouterr().out
    assert "merged: what is lost against each task's own expert" in said
    card = Path("card.md").read_text()
    assert card.startswith("# Model card: Three in one\n")
    assert "two weeks of calls" in card
    assert "| ada | red | 20 |" in card
    before = sorted(folder.rglob("*"))
    for wrong, says in (
        (["--evaluate", "nothing.py"], "there is no file 'nothing.py' with an evaluation"),
        (["--evaluate", "my_eval.py:score"], "'my_eval.py' has no function 'score'"),
        (["--evaluate", "my_eval.py:nothing"], "'my_eval.py' has no function 'nothing'"),
        (["--evaluate", "about.json"], "'about.json' has no function 'evaluate'"),
        (["--card", "card.pdf"], "a card goes into a file that ends in .md or .html"),
        (["--card", "nowhere/card.md"], "there is no folder 'nowhere' for the card"),
        (["--about", "about.json"], "--about is for a card"),
        (["--card", "card.md", "--about", "base.safetensors"], "'base.safetensors' is no JSON"),
        (["--card", "card.md", "--about", "missing.json"], "'missing.json' cannot be read"),
    ):
        assert main([*given[:-2], "--out", "other.safetensors", *wrong]) == 1, wrong
        err = capsys.readouterr().err
        assert says in err, err
        assert len(err.splitlines()) == 1
    Path("fails.py").write_text("def evaluate(state, task):\n    return state['nothing']\n")
    Path("odd.py").write_text("def evaluate(state, task):\n    return 'good'\n")
    Path("ends.py").write_text("import sys\n\n\ndef evaluate(state, task):\n    sys.exit(3)\n")
    for script, says in (
        ("fails.py", "'fails.py' raised KeyError ('nothing') in line 2, asked about 'ada'; mend it, and ask again."),
        ("ends.py", "'ends.py' raised SystemExit (3) in line 5, asked about 'ada'; mend it, and ask again."),
        ("odd.py", "returned a str for 'ada'"),
    ):
        assert main([*given[:-1], script, "--report", "audit.json"]) == 1
        err = capsys.readouterr().err
        assert "'merged.safetensors' is written, and was not judged" in err
        assert says in err
        assert "Traceback" not in err
        assert Audit.from_json(Path("audit.json").read_text()).output is not None
        for left in (script, "audit.json"):
            Path(left).unlink()
    for content, says in (
        ({"titel": "x"}, "holds 'titel', and a card knows"),
        ({"title": 3}, "has 'title', which is no text"),
        ({"classes": {"ada": "red"}}, "'classes', which are no lists of names"),
        ({"sources": {"ada": {"from": "x"}}}, "'sources', of which each holds texts"),
        ([1], "holds 'list'"),
        ({"sources": {"dora": {"data": "x"}}}, "speaks of 'dora', which is no input; there are: base, ada, ben, cleo"),
    ):
        Path("about.json").write_text(json.dumps(content))
        assert main([*given, "--card", "card.md", "--about", "about.json"]) == 1
        assert says in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


# What is refused


class Evil:
    """Writes a file when it is unpickled by anything that runs code."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, ("touch pwned",)


def cut(name: str, end: int) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:end])


def sharded(missing: bool = False, escapes: bool = False) -> None:
    """Expert "odd" in two shards, one of which is missing or lies elsewhere."""
    state = load_file("ada/model.safetensors")
    Path("odd").mkdir()
    names = {name: f"model-{1 + place % 2}.safetensors" for place, name in enumerate(state)}
    for shard in set(names.values()):
        save_file({name: one for name, one in state.items() if names[name] == shard}, f"odd/{shard}")
    if missing:
        Path("odd/model-2.safetensors").unlink()
    if escapes:
        Path("odd/model-2.safetensors").rename("model-2.safetensors")
        names = {name: shard.replace("model-2", "../model-2") for name, shard in names.items()}
    Path("odd/model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def changed(name: str, tensor: Tensor) -> None:
    save_file({**load_file("ada/model.safetensors"), name: tensor}, "odd.safetensors")


def twice() -> None:
    """A header that has one name twice."""
    raw = Path("ada/model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode().rstrip()
    entry = re.search(r'"a\.bias":\{[^}]*\}', header)
    assert entry is not None
    header = header[:-1] + "," + entry.group() + "}"
    header += " " * (-len(header) % 8)
    Path("odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + raw[8 + length :])


BROKEN = {
    "truncated file": (lambda: (changed("a.bias", torch.zeros(24)), cut("odd.safetensors", 900)), "is cut off"),
    "wrong dtype": (lambda: changed("a.bias", torch.zeros(24, dtype=torch.int64)), "is torch.int64 and the base is"),
    "missing shard": (lambda: sharded(missing=True), "names the file 'model-2.safetensors', which is missing"),
    "pickle with code in it": (lambda: torch.save({"a.weight": Evil()}, "odd.pt"), "was not done"),
    "NaN": (lambda: changed("a.bias", torch.full((24,), torch.nan)), "holds NaN or infinity"),
    "another architecture": (
        lambda: save_file({"conv.weight": torch.zeros(3, 3)}, "odd.safetensors"),
        "expert 'odd'",
    ),
    "empty file": (lambda: Path("odd.safetensors").touch(), "is empty"),
    "duplicate names": (twice, "has 'a.bias' twice"),
    "path that escapes": (lambda: sharded(escapes=True), "which is no .safetensors file of its own folder"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_input_is_one_sentence_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    make, says = BROKEN[what]
    make()
    (odd,) = (str(one) for one in (Path("odd"), Path("odd.safetensors"), Path("odd.pt")) if one.exists())
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    given = ["base.safetensors", "ada", odd, "--out", "merged.safetensors", "--report", "audit.json"]
    assert main(["merge", *given]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "is a pickle" not in line]
    assert len(lines) == 1, said.err
    assert says in lines[0]
    assert "Traceback" not in said.err
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_no_disk_is_one_sentence_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=1000, used=1000, free=0))
    assert main(["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"out: 'merged.safetensors' needs .* GB, and the disk has 0 GB left; free some space", said)
    assert len(said.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def test_what_the_sentence_leaves_out_the_check_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed("a.weight", torch.zeros(3, 16))
    save_file({**load_file("odd.safetensors"), "b.weight": torch.zeros(3, 16)}, "odd.safetensors")
    given = ["base.safetensors", "ada", "odd.safetensors"]
    assert main(["merge", *given, "--out", "merged.safetensors"]) == 1
    assert "more: see `apgd-teach check` with the same files)" in capsys.readouterr().err
    assert main(["check", *given]) == 1
    assert capsys.readouterr().out.count("expert 'odd'") > 1


def test_a_report_is_read_shown_and_held_against_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--report", "audit.json"])
    capsys.readouterr()
    assert main(["report", "audit.json"]) == 0
    assert capsys.readouterr().out.startswith("# Audit of a merge")
    assert main(["report", "audit.json", "--model", "merged.safetensors"]) == 0
    assert "is the model that 'audit.json' is of, byte for byte" in capsys.readouterr().err
    assert main(["report", "audit.json", "--model", "base.safetensors"]) == 1
    assert "is not the model" in capsys.readouterr().err
    assert main(["report", "audit.json", "--out", "audit.html"]) == 0
    assert "<h1>Audit of a merge: apgd of 3</h1>" in Path("audit.html").read_text()
    Path("damaged.json").write_bytes(b"\xff\xfe{")
    for path, says in (
        ("nothing.json", "there is no audit 'nothing.json'"),
        ("damaged.json", "'damaged.json' cannot be read as an audit"),
        ("base.safetensors", "as an audit"),
    ):
        assert main(["report", path]) == 1
        said = capsys.readouterr().err
        assert says in said
        assert len(said.splitlines()) == 1


def test_compress_keeps_what_was_asked_for_and_gives_the_model_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["merge", "base.safetensors", *EXPERTS, "--method", "average", "--out", "merged.safetensors"])
    capsys.readouterr()
    assert main(["compress", "base.safetensors", "merged.safetensors", "--share", "0.4", "--out", "small"]) == 0
    said = capsys.readouterr().out
    assert "numbers in place of" in said
    assert re.search(r"small: [\d.]+ kB, \d+\.\d % of the numbers that changed\.", said)
    assert main(["merge", "base.safetensors", "small", "--method", "average", "--out", "again.safetensors"]) == 0
    expected = low_rank(load_file("base.safetensors"), load_file("merged.safetensors"), share=0.4)
    for name, one in expected.state_dict(load_file("base.safetensors")).items():
        torch.testing.assert_close(load_file("again.safetensors")[name], one, atol=1e-6, rtol=1e-5)
    small = Path("small")
    assert {path.stat().st_mode & 0o777 for path in small.iterdir()} == {
        Path("merged.safetensors").stat().st_mode & 0o777
    }
    said = capsys.readouterr().out
    assert "Nothing became smaller" not in said
    assert main(["compress", "base.safetensors", "merged.safetensors", "--energy", "1", "--out", "whole"]) == 0
    assert "Nothing became smaller" in capsys.readouterr().out
    for wrong, says in (
        (["--share", "0.4", "--out", "small"], "'small' is there already"),
        (["--energy", "1.4", "--out", "other"], "energy"),
        (["--energy", "0.5", "--out", "nowhere/other"], "there is no folder 'nowhere' for 'other'"),
    ):
        assert main(["compress", "base.safetensors", "merged.safetensors", *wrong]) == 1
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1


def test_experts_go_by_the_names_of_their_files_or_folders(folder: Path) -> None:
    assert list(named(EXPERTS)) == ["ada", "ben", "cleo"]
    assert named(["x=ada", "sub/dir/other.safetensors"]) == {
        "x": Path("ada"),
        "other": Path("sub/dir/other.safetensors"),
    }
    assert list(named(["runs/lr=0.1/best.safetensors"])) == ["best"]
    Path("odd=name.safetensors").touch()
    assert list(named(["odd=name.safetensors"])) == ["odd=name"]
    assert list(named(["m/model.safetensors.index.json"])) == ["m"]
    for wrong, says in (
        (["ada", "x/ada.safetensors"], "two experts are called 'ada'"),
        (["base=ada"], "an expert cannot be called 'base'"),
        (["=ada"], "is not NAME=PATH"),
        (["ada="], "is not NAME=PATH"),
    ):
        with pytest.raises(MergeError, match=says):
            named(wrong)


# Pickles


def test_a_pickle_is_read_with_a_warning_and_named_in_the_audit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_file("base.safetensors")
    tied = {**base, "again.weight": base["a.weight"]}
    torch.save({"state_dict": tied, "epoch": 3}, "base.pt")
    torch.save({name: torch.nn.Parameter(one + 0.01) for name, one in tied.items()}, "one.bin")
    assert (
        main(
            ["merge", "base.pt", "one.bin", "--method", "average", "--out", "merged.safetensors", "--report", "a.json"]
        )
        == 0
    )
    said = capsys.readouterr().err
    assert said.count("is a pickle, a format that can run code; it is read with weights_only=True") == 2
    audit = Audit.from_json(Path("a.json").read_text())
    assert audit.files == {"base": ("base.pt",), "one": ("one.bin",)}
    sums = subprocess.run(
        ["sha256sum", "base.pt", "one.bin"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [audit.inputs["base"], audit.inputs["one"]] == sums[::2]
    torch.testing.assert_close(load_file("merged.safetensors")["again.weight"], tied["again.weight"] + 0.01)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    torch.save({"a.weight": Evil()}, "zip.pt", pickle_protocol=protocol)
    Path("plain.pkl").write_bytes(pickle.dumps({"a.weight": Evil()}, protocol=protocol))
    before = sorted(folder.rglob("*"))
    for one in ("zip.pt", "plain.pkl"):
        for command in (["check"], ["merge", "--out", "merged.safetensors"]):
            assert main([*command, "base.safetensors", one]) == 1
            said = capsys.readouterr().err.splitlines()
            assert "is a pickle" in said[0]
            assert len(said) == 2, said
            assert said[1].startswith(f"expert '{Path(one).stem}': '{one}' "), said
            assert "was not done" in said[1], said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 and no more", "cannot be read as a PyTorch file"),
        (b"hello", "'odd.pt' "),
        ({"epoch": 3, "a.weight": torch.zeros(2)}, "holds 'epoch' \\(int\\) beside tensors"),
        ([torch.zeros(2)], "holds no state dict \\(a list\\)"),
        ({"model": {"a": torch.zeros(2)}, "state_dict": {"a": torch.zeros(2)}}, "holds 'model'"),
        ({"a.weight": torch.zeros(2, 2).to_sparse()}, "sparse, quantised or without values"),
    ],
)
def test_pickles_that_are_no_state_dict_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], content: object, says: str
) -> None:
    if isinstance(content, bytes):
        Path("odd.pt").write_bytes(content)
    else:
        torch.save(content, "odd.pt")
    assert main(["check", "base.safetensors", "odd.pt"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert said[1].startswith("expert 'odd': 'odd.pt' ")
    assert re.search(says, said[1]), said[1]


# Stopped on the way

STOPPED = """
import sys, time
from apgd_teach.merging import output
from apgd_teach.cli import main, make_parser
write = output.Writer.write
def slow(self, name, tensor):
    write(self, name, tensor)
    print("wrote", name, flush=True)
    time.sleep(60)
output.Writer.write = slow
sys.exit(main(sys.argv[1:]))
"""


def until_written(running: subprocess.Popen[str]) -> None:
    """Wait until one tensor is in the hidden file; a bar's line may come first."""
    assert running.stdout is not None
    assert any("wrote" in line for line in running.stdout)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has other signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_what_is_stopped_leaves_no_output_and_starts_afresh(folder: Path, how: signal.Signals) -> None:
    (folder / "merged.safetensors").write_bytes(b"what was there before")
    before = sorted(folder.rglob("*"))
    given = ["merge", "base.safetensors", *EXPERTS, "--method", "average", "--out", "merged.safetensors"]
    running = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *given], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until_written(running)
    assert len(sorted(folder.rglob("*"))) > len(before)
    running.send_signal(how)
    _, said = running.communicate(timeout=30)
    assert (folder / "merged.safetensors").read_bytes() == b"what was there before"
    left = [one for one in folder.rglob("*") if one not in before]
    if how == getattr(signal, "SIGKILL", None):
        assert left, "nothing was left, so there is nothing to tidy up"
    else:
        assert running.returncode == 130
        assert said.splitlines()[-1] == "Stopped; no file is left half-written."
        assert not left
    assert main(given) == 0
    assert sorted(folder.rglob("*")) == before
    assert load_file(folder / "merged.safetensors")


def test_a_merge_that_still_runs_is_left_alone(folder: Path) -> None:
    """Two of them into one place: neither takes the other's files away."""
    given = ["merge", "base.safetensors", *EXPERTS, "--method", "average", "--out", "merged.safetensors"]
    running = subprocess.Popen([sys.executable, "-c", STOPPED, *given], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        until_written(running)
        hidden = list(folder.glob(".merged.safetensors.*"))
        assert len(hidden) == 1
        assert main(given) == 0
        assert list(folder.glob(".merged.safetensors.*")) == hidden
    finally:
        running.kill()
        running.wait()
        time.sleep(0.1)


CONVERTED = """
import sys, time
from apgd_teach import cli
from apgd_teach.own import inputs
convert = inputs.convert
def slow(path, folder, label):
    convert(path, folder, label)
    print("wrote", path, flush=True)
    time.sleep(60)
inputs.convert = slow
sys.exit(cli.main(sys.argv[1:]))
"""

COMPRESSED = """
import sys, time
from apgd_teach import cli
from apgd_teach.merging import low_rank  # noqa: F401
module = sys.modules["apgd_teach.merging.low_rank"]
save_file = module.save_file
def slow(*given, **more):
    save_file(*given, **more)
    print("wrote", flush=True)
    time.sleep(60)
module.save_file = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@contextmanager
def running_until_written(program: str, given: list[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has written something hidden, and then waits; killed in the end."""
    running = subprocess.Popen(
        [sys.executable, "-c", program, *given], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    )
    try:
        until_written(running)
        yield running
    finally:
        running.kill()
        running.communicate(timeout=30)


def hold(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_the_user(beside: Path) -> dict[Path, bytes]:
    """Things that are called as our hidden folders are, and are none."""
    (beside.parent / f".{beside.name}.notes.tmp").write_text("precious")
    for name, owner in (("empty", None), ("theirs", '{"name": "ada"}'), ("afar", AFAR)):
        other = beside.parent / f".{beside.name}.{name}.tmp"
        other.mkdir()
        (other / "thesis.txt").write_text("precious")
        if owner is not None:
            (other / "owner.json").write_text(owner)
    return hold(beside.parent)


AFAR = '{"host": "another machine", "process": 1, "since": 0.0}'


@pytest.mark.parametrize("command", ["check", "merge"])
def test_what_a_killed_process_made_of_pickles_the_next_one_removes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Of whatever is beside it, that is all: a process that still runs keeps its files, and the user everything."""
    room = tmp_path_factory.mktemp("room")
    theirs = of_the_user(room / "apgd-teach")
    torch.save(load_file("base.safetensors"), "start.pt")
    given = [command, "start.pt", "ada", *(["--out", "merged.safetensors"] if command == "merge" else [])]
    with running_until_written(CONVERTED, given, TMPDIR=str(room)):
        pass
    dead = set(hold(room)) - set(theirs)
    assert [path.name for path in dead if path.suffix == ".safetensors"] == ["start.safetensors"]
    with running_until_written(CONVERTED, given, TMPDIR=str(room)):
        alive = {path: content for path, content in hold(room).items() if path not in theirs}
        assert not dead & set(alive)
        monkeypatch.setattr(tempfile, "tempdir", str(room))
        assert main(["merge", "start.pt", "ada", "--out", "elsewhere.safetensors"]) == 0
        assert hold(room) == {**theirs, **alive}
    assert main(["check", "start.pt", "ada"]) == 0
    assert hold(room) == theirs


def test_what_a_killed_compress_left_the_next_one_to_that_place_removes(folder: Path) -> None:
    given = ["compress", "base.safetensors", "ada/model.safetensors", "--energy", "0.9", "--out", "small"]
    theirs = of_the_user(folder / "small")
    with running_until_written(COMPRESSED, given):
        pass
    dead = set(hold(folder)) - set(theirs)
    assert "adapter_model.safetensors" in {path.name for path in dead}
    with running_until_written(COMPRESSED, given):
        alive = {path: content for path, content in hold(folder).items() if path not in theirs}
        assert not dead & set(alive)
        assert main(given) == 0
        made = {path: content for path, content in hold(folder).items() if path.parent.name == "small"}
        assert hold(folder) == {**theirs, **alive, **made}
    shutil.rmtree("small")
    assert main(given) == 0
    assert hold(folder) == {**theirs, **made}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no polite end")
def test_ending_a_check_politely_leaves_nothing_of_its_pickles(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    room = tmp_path_factory.mktemp("room")
    torch.save(load_file("base.safetensors"), "start.pt")
    with running_until_written(CONVERTED, ["check", "start.pt", "ada"], TMPDIR=str(room)) as running:
        assert hold(room)
        running.terminate()
        assert running.wait(timeout=30) == 130
    assert not hold(room)


@pytest.mark.skipif(sys.platform != "linux", reason="another system's processes are known by other facts")
def test_a_process_is_known_by_what_no_clock_changes() -> None:
    """Seconds from the start of the machine, as the system itself counts them."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(after_name[19])
    with hidden_beside(Path(tempfile.gettempdir()) / "known") as hidden:
        owner = json.loads((hidden / "owner.json").read_text())
    assert owner["process"] == os.getpid()
    assert owner["since"] == pytest.approx(ticks / os.sysconf("SC_CLK_TCK"), abs=0.006)


# Help and completion


@pytest.mark.parametrize("command", ["check", "merge", "choose", "report", "compress", "completion"])
def test_help_has_examples_that_the_parser_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    examples = [line.strip() for line in said.splitlines() if line.strip().startswith("apgd-teach ")]
    assert len(examples) >= 2
    for line in examples:
        words = shlex.split(line.partition("   ")[0].partition(" > ")[0])
        assert make_parser().parse_args(words[1:]).command is not None


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("check", "merge", "choose", "report", "compress", "--dry-run", "--priority", "tsv_m"):
        assert word in script


@pytest.mark.skipif(not BASH.exists(), reason="no bash here")
def test_bash_completes_what_is_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (folder / "completion.sh").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = (
            f"source ./completion.sh; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            f"_shtab_apgd_teach apgd-teach '{words[-1]}' '{words[-2]}' 2> /dev/null; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run([str(BASH), "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(completed("apgd-teach", "me")) == {"merge"}
    assert set(completed("apgd-teach", "merge", "base.safetensors", "ada", "--method", "ts")) == {"tsv_m"}
    assert "base.safetensors" in completed("apgd-teach", "merge", "ba")
    (folder / "my_eval.py").touch()
    assert set(completed("apgd-teach", "choose", "base.safetensors", "ada", "--tol")) == {"--tolerance"}
    for command in ("merge", "choose"):
        assert "my_eval.py" in completed("apgd-teach", command, "base.safetensors", "ada", "--evaluate", "my")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--report", "merged.safetensors.json", "--card", "x.html", "--report", "x.html"], "'x.html' is to hold two"),
        (["--report", "audit.json", "--report", "audit.json"], "'audit.json' is to hold two things"),
        (["--report", "ada/adapter_config.json"], "is an input or lies in one"),
        (["--card", "ben/card.md"], "is an input or lies in one"),
        (["--engine", "dask", "--workers", "2"], "--workers is for one process"),
    ],
)
def test_what_would_be_written_over_is_said_before_anything_is_computed(
    folder: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert main(["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", *more]) == 1
    assert says in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_an_expert_that_is_the_base_itself_has_a_report_with_figures(folder: Path) -> None:
    save_file(load_file("base.safetensors"), "same.safetensors")
    given = ["base.safetensors", "ada", "same.safetensors", "--out", "merged.safetensors"]
    assert main(["merge", *given, "--report", "audit.html", "--card", "card.html"]) == 0
    assert "data:image/png;base64," in Path("audit.html").read_text()


def test_the_memory_that_is_foretold_counts_what_is_averaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def foretold(*policy: str) -> float:
        assert main(["check", "large.safetensors", "one.safetensors", *policy]) == 0
        found = re.search(r"at most ([\d.]+) (MB|GB)", capsys.readouterr().out)
        assert found is not None
        return float(found[1]) * (1000 if found[2] == "GB" else 1)

    state = {"embed.weight": torch.zeros(30_000, 100), "a.weight": torch.zeros(8, 8)}
    save_file(state, "large.safetensors")
    save_file({name: one + 1 for name, one in state.items()}, "one.safetensors")
    tau = 4 * 30_000 * 100 / 1e6
    assert foretold("--policy", "embed*=average") >= 300 + 2 * tau
    assert foretold("--policy", "embed*=average") == foretold("--policy", "embed*=merge")


def test_a_pickle_s_merge_in_a_folder_has_a_file_of_its_name(folder: Path) -> None:
    torch.save(load_file("base.safetensors"), "start.pt")
    torch.save(load_file("ada/model.safetensors"), "ada.pt")
    assert main(["merge", "start.pt", "ada.pt", "--out", "made", "--report", "audit.json"]) == 0
    assert [one.name for one in Path("made").iterdir()] == ["start.safetensors"]
    audit = Audit.from_json(Path("audit.json").read_text())
    assert audit.files["base"] == ("start.pt",)
    assert re.fullmatch("[0-9a-f]{64}", audit.inputs["base"])


def test_an_evaluation_imports_what_lies_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    there = folder / "scripts"
    there.mkdir()
    (there / "my_own_helpers_of_this_test.py").write_text("from torch import arange\n")
    lines = ["def evaluate(state, task):", "    from my_own_helpers_of_this_test import arange"]
    (there / "score.py").write_text("\n".join([*lines, "    return arange(9), arange(9)"]))
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--evaluate", "scripts/score.py"]
    assert main(given) == 0


def test_an_evaluation_that_ends_the_program_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ends.py").write_text("import sys\nsys.exit(3)\n")
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--evaluate", "ends.py"]
    assert main(given) == 1
    assert "'ends.py' fails when it is run (SystemExit: 3)" in capsys.readouterr().err
    assert not Path("merged.safetensors").exists()


@pytest.mark.parametrize("returned", ["[0.0, 1.0], [0, 1]", "[0, 1], [0.0, 1.0]"])
def test_classes_that_are_no_whole_numbers_are_a_sentence(
    folder: Path, returned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("half.py").write_text(f"def evaluate(state, task):\n    return {returned}\n")
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--evaluate", "half.py"]
    assert main(given) == 1
    said = capsys.readouterr().err
    assert "a whole number, for each example" in said
    assert "'merged.safetensors' is written, and was not judged" in said


def test_names_that_are_missing_do_not_lose_the_card(folder: Path) -> None:
    Path("my_eval.py").write_text(EVALUATION)
    Path("about.json").write_text(json.dumps({"classes": {"ada": ["red"]}}))
    given = ["merge", "base.safetensors", *EXPERTS, "--out", "merged.safetensors", "--evaluate", "my_eval.py"]
    assert main([*given, "--card", "card.md", "--about", "about.json"]) == 0
    assert "red" in Path("card.md").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("compress base.safetensors ada/model.safetensors --energy 0.99 --out small", 1000),
        ("merge start.pt ada --out merged.safetensors", 1000),
        # Not even a folder for temporary files can be tried.
        ("check start.pt ada", 0),
    ],
)
def test_a_disk_that_takes_no_more_is_one_sentence(folder: Path, line: str, most: int) -> None:
    torch.save(load_file("base.safetensors"), "start.pt")
    before = sorted(folder.rglob("*"))
    program = (
        "import resource, signal, sys\n"
        "from apgd_teach.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        f"sys.exit(main({line.split()}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "free some space" in done.stderr.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before


def test_a_report_that_cannot_be_written_leaves_a_model_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apgd_teach.own import report

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(report, "write_atomically", full)
    far = {name: 3 * one for name, one in load_file("base.safetensors").items()}
    save_file(far, "far.safetensors")
    given = ["merge", "base.safetensors", "ada", "far.safetensors", "--out", "merged.safetensors"]
    assert main([*given, "--report", "audit.json"]) == 1
    said = capsys.readouterr().err
    assert "Warning: " in said
    assert "'merged.safetensors' is written, and its report 'audit.json' is not" in said
    assert Path("merged.safetensors").exists()
