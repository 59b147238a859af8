"""`apgd-teach choose`: real files, an evaluation in a file, and the merge that it speaks for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.cli import main
from apgd_teach.merging import METHODS, merge
from apgd_teach.own.choosing import CAUTION, candidates
from apgd_teach.own.judging import CANDIDATES, choose

State = dict[str, Tensor]
TASKS = ("ada", "ben", "cleo")

EVALUATION = """
from pathlib import Path

import torch
from safetensors.torch import load_file

inputs = torch.randn(120, 12, generator=torch.Generator().manual_seed(5))
experts = {task: load_file(Path(__file__).parent / f"{task}.safetensors") for task in ("ada", "ben", "cleo")}


def answers(state):
    return (inputs @ state["a.weight"].float().T + state["a.bias"].float()).argmax(dim=1)


def evaluate(state, task):
    return answers(state), answers(experts[task])


def score(state, task):
    return 100 * float((answers(state) == answers(experts[task])).float().mean())


def fails(state, task):
    return score(state, "dora")
"""

INNERMOST = 1 + EVALUATION[: EVALUATION.index("    return 100")].count("\n")
"""The line of the file in which `fails` fails: of what it calls, and not its own."""


def evaluate(folder: Path) -> object:
    """The function `evaluate` of that file."""
    there: dict[str, object] = {"__file__": str(folder / "my_eval.py")}
    exec(compile(EVALUATION, "my_eval.py", "exec"), there)
    return there["evaluate"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, an expert for each task, and an evaluation that asks for the experts' own answers."""
    draw = torch.Generator().manual_seed(0)
    base = {"a.weight": 0.3 * torch.randn(3, 12, generator=draw), "a.bias": torch.zeros(3)}
    save_file(base, tmp_path / "base.safetensors")
    for task in TASKS:
        expert = {name: one + 0.4 * torch.randn(one.shape, generator=draw) for name, one in base.items()}
        save_file(expert, tmp_path / f"{task}.safetensors")
    (tmp_path / "my_eval.py").write_text(EVALUATION)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["base.safetensors", *(f"{task}.safetensors" for task in TASKS)]
GIVEN = ["choose", *FILES, "--evaluate", "my_eval.py"]


def typed(said: str) -> list[str]:
    """The command that was printed, in words."""
    (line,) = re.findall(r"^  (apgd-teach merge .*)$", said, re.MULTILINE)
    return shlex.split(line)[1:]


def test_it_ranks_as_the_library_does_and_its_command_makes_what_won(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    more = ["--priority", "ada=3", "--priority", "ben=0", "--tolerance", "1.5", "--policy", "a.b*=keep"]
    assert main([*GIVEN, *more]) == 0
    said = capsys.readouterr().out
    assert sorted(folder.iterdir()) == before
    states = {task: load_file(f"{task}.safetensors") for task in TASKS}
    expected = choose(
        load_file("base.safetensors"),
        states,
        evaluate(folder),  # type: ignore[arg-type]
        priorities={"ada": 3.0, "ben": 0.0},
        tolerance=1.5,
        policy={"a.b*": "keep"},
        progress=False,
    )
    for part in (str(expected.table()), expected.advice, str(expected.judged.table(expected.best)), CAUTION):
        assert part in said
    assert "tasks that lost more than 1.5" in said
    assert main(typed(said)) == 0
    merged = load_file("merged.safetensors")
    for name, tensor in expected.network.state_dict.items():
        assert torch.equal(merged[name], tensor)
    assert torch.equal(merged["a.bias"], torch.zeros(3))


def test_the_methods_and_settings_that_are_named_are_tried_and_no_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--method", "ties", "--set", "trim=0.1", "--set", "trim=0.9", "--set", "coefficient=0.5"]
    assert main([*GIVEN[:-1], "my_eval.py:score", *more]) == 0
    said = capsys.readouterr().out
    tried = [line for line in said.splitlines() if line.startswith("ties, trim=") and "is " not in line[5:]]
    assert sorted(line.split("  ")[0] for line in tried) == [
        "ties, trim=0.1, coefficient=0.5",
        "ties, trim=0.9, coefficient=0.5",
    ]
    line = typed(said)
    best = float(line[[one.startswith("trim=") for one in line].index(True)].removeprefix("trim="))
    experts = {task: load_file(f"{task}.safetensors") for task in TASKS}
    assert main(line) == 0
    expected = merge(load_file("base.safetensors"), experts, "ties", trim=best, coefficient=0.5).state_dict
    assert all(torch.equal(one, expected[name]) for name, one in load_file("merged.safetensors").items())


def test_a_method_brings_the_settings_that_the_course_tries_or_its_own_defaults() -> None:
    assert candidates([], []) == CANDIDATES
    apgd = candidates(["apgd", "dare", "apgd"], [])
    assert set(apgd) == {label for label, one in CANDIDATES.items() if one[0] == "apgd"} | {"dare"}
    assert apgd["dare"] == ("dare", {})
    every = candidates(list(METHODS), [])
    assert {name for name, _ in every.values()} == set(METHODS)
    grid = candidates(["apgd"], [("reach", None), ("reach", 0.1), ("flatten", 0.0), ("flatten", 0.5)])
    assert len(grid) == 4
    assert grid["apgd, reach=None, flatten=0.5"] == ("apgd", {"reach": None, "flatten": 0.5})


def test_a_choice_is_kept_as_json_markdown_and_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [part for end in ("json", "md", "html") for part in ("--report", f"choice.{end}")]
    assert main([*GIVEN, "--method", "average", "--method", "ties", *reports, "--policy", "a.b*=average"]) == 0
    said = capsys.readouterr().out
    assert "Report: choice.html" in said
    found = json.loads(Path("choice.json").read_text())
    assert set(found["candidates"]) == {"average", "ties"}
    means = {label: one["mean"] for label, one in found["candidates"].items()}
    assert found["best"] == max(means, key=lambda label: means[label])
    assert found["data_used"] == "labelled"
    assert shlex.split(found["command"])[1:] == typed(said)
    # The inputs are known again by the hashes that the audit of the merge has.
    assert main(typed(said)) == 0
    assert found["inputs"] == json.loads(Path("merged.json").read_text())["inputs"]
    text = Path("choice.md").read_text()
    assert f"\n    {found['command']}\n" in text
    page = Path("choice.html").read_text()
    for part in (found["advice"], found["caution"], *found["inputs"].values()):
        assert part in text
        assert part.replace("'", "&#x27;") in page
    assert "data:image/png;base64," in page
    assert "http" not in page


def test_pickles_shards_and_names_with_blanks_come_back_in_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my models").mkdir()
    save_file(load_file("base.safetensors"), "my models/model.safetensors")
    torch.save(load_file("ben.safetensors"), "my models/ben.pt")
    Path("my models/ben.pt").rename("ben of monday.pt")
    given = ["my models", "ada.safetensors", "ben=ben of monday.pt", "--evaluate", "my_eval.py", "--method", "average"]
    Path("merged.json").touch()
    assert main(["choose", *given, "--report", "choice.json"]) == 0
    said = capsys.readouterr()
    assert said.err.count("is a pickle") == 1
    line = typed(said.out)
    assert line[:4] == ["merge", "my models", "ada.safetensors", "ben=ben of monday.pt"]
    # A base that is a folder makes a folder; and nothing that is there already is written over.
    assert line[-4:] == ["--out", "merged-2", "--report", "merged-2.json"]
    assert main(line) == 0
    inputs = json.loads(Path("merged-2.json").read_text())["inputs"]
    assert json.loads(Path("choice.json").read_text())["inputs"] == inputs
    assert load_file("merged-2/model.safetensors").keys() == load_file("base.safetensors").keys()


def test_an_adapter_on_a_base_in_half_precision_is_chosen_as_it_is_merged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = torch.Generator().manual_seed(3)
    half = {name: one.bfloat16() for name, one in load_file("base.safetensors").items()}
    save_file(half, "half.safetensors")
    Path("ada").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"], "bias": "none"}
    Path("ada/adapter_config.json").write_text(json.dumps(config))
    shapes = {"lora_A": (2, 12), "lora_B": (3, 2)}
    parts = {f"base_model.model.a.{name}.weight": torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    save_file(parts, "ada/adapter_model.safetensors")
    given = ["half.safetensors", "ada", "--evaluate", "my_eval.py", "--method", "average", "--report", "choice.json"]
    assert main(["choose", *given]) == 0
    assert main([*typed(capsys.readouterr().out), "--evaluate", "my_eval.py"]) == 0
    found = json.loads(Path("choice.json").read_text())["candidates"]["average"]["tasks"]["ada"]
    assert f"{found:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--evaluate", "nothing.py"], "there is no file 'nothing.py' with an evaluation"),
        (["--evaluate", "my_eval.py:inputs"], "'my_eval.py' has no function 'inputs'"),
        (
            ["--evaluate", "my_eval.py:fails"],
            f"raised KeyError ('dora') in line {INNERMOST}, asked about 'ada'; mend it",
        ),
        (["--evaluate", "odd.py"], "the evaluation returned a str for 'ada'"),
        (["--priority", "dora=1"], "there is no task 'dora' to give a priority; there are: ada, ben, cleo."),
        ([part for task in TASKS for part in ("--priority", f"{task}=0")], "all priorities are 0"),
        (["--set", "trim=0.1"], "--set is for the settings of one method"),
        (["--set", "trim=0.1", "--method", "ties", "--method", "average"], "--set is for the settings of one method"),
        (["--set", "trimm=0.1", "--method", "ties"], "'ties' has no setting 'trimm'"),
        (["--set", "policy=1", "--method", "ties"], "'ties' has no setting 'policy'"),
        (["--set", "trim=7", "--method", "ties"], "trim"),
        (["--report", "choice.pdf"], "a report goes into a file that ends in .json, .md, .html"),
        (["--report", "nowhere/choice.md"], "there is no folder 'nowhere' for the report"),
        (["--report", "a.md", "--report", "a.md"], "'a.md' is to hold two things"),
        (["--policy", "a.b*=throw"], "throw"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    Path("odd.py").write_text("def evaluate(state, task):\n    return 'good'\n")
    before = sorted(folder.rglob("*"))
    assert main([*GIVEN, *more]) == 1
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    # A bar may have stood there, and nothing else.
    assert not [line for line in said.out.split("\r") if line.strip() and "evaluation/s" not in line]
    left = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    assert left == before


def test_files_that_do_not_fit_are_one_sentence_before_the_evaluation_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({**load_file("ada.safetensors"), "a.bias": torch.zeros(4)}, "wide.safetensors")
    Path("asked.py").write_text("def evaluate(state, task):\n    raise SystemExit('asked')\n")
    assert main(["choose", "base.safetensors", "wide.safetensors", "--evaluate", "asked.py"]) == 1
    said = capsys.readouterr().err
    assert "a.bias" in said
    assert "--policy 'a.bias=keep'" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "the following arguments are required: --evaluate"),
        (["--evaluate", "my_eval.py", "--priority", "ada"], "'ada' is not TASK=WEIGHT with a weight of 0 or more"),
        (["--evaluate", "my_eval.py", "--priority", "ada=-1"], "'ada=-1' is not TASK=WEIGHT"),
        (["--evaluate", "my_eval.py", "--priority", "ada=nan"], "'ada=nan' is not TASK=WEIGHT"),
        (["--evaluate", "my_eval.py", "--tolerance", "much"], "'much' is not a number of points, 0 or more"),
        (["--evaluate", "my_eval.py", "--tolerance", "inf"], "'inf' is not a number of points, 0 or more"),
        (["--evaluate", "my_eval.py", "--method", "best"], "invalid choice: 'best'"),
    ],
)
def test_a_wrong_option_ends_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["choose", *FILES, *more])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
