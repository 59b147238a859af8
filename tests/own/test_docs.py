"""What docs/own.md tells a reader to type is typed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from apgd_teach.cli import main
from apgd_teach.own.noise import CORRUPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "own.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)

    def network(**more: int) -> dict[str, torch.Tensor]:
        shapes = {"a.weight": (24, 16), "a.bias": (24,), "head.weight": (more.get("classes", 5), 24)}
        return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}

    base = network()
    monkeypatch.chdir(tmp_path)
    save_file(base, "base.safetensors")
    for name in ("ada", "ben"):
        near = {key: one + 0.1 * torch.randn(one.shape, generator=draw) for key, one in base.items()}
        save_file(near, f"{name}.safetensors")
    save_file({**base, "a.weight": base["a.weight"] + 0.1, "head.weight": torch.zeros(7, 24)}, "wider_head.safetensors")
    Path("about.json").write_text('{"title": "ada and ben", "sources": {"ada": {"data": "made up"}}}')
    (program,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert program.startswith("# my_eval.py\n")
    Path("my_eval.py").write_text(program)
    typed = commands()
    assert len(typed) == 12
    for line in typed:
        program, *arguments = shlex.split(line)
        assert program == "apgd-teach"
        assert main(arguments) == 0, line


def test_the_programs_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    said, made = [], []
    for block in blocks:
        there: dict[str, Any] = {"__name__": "a program"}
        exec(compile(block, str(PAGE), "exec"), there)
        said.append(capsys.readouterr().out)
        made.append(there)
    judging, worse = said
    assert "# Model card: ada and ben in one" in judging
    assert all(re.search(rf"^{re.escape(name)} ", worse, re.MULTILINE) for name in CORRUPTIONS)
    # The student says more than the class that its teacher names most often.
    heads, student, pictures, answers = (made[1][name] for name in ("heads", "student", "pictures", "answers"))
    right, often = 0.0, 0.0
    for task, head in heads.items():
        right += float((head(student(pictures[task])).argmax(dim=1) == answers[task]).float().mean()) / len(heads)
        often += float(answers[task].bincount().max()) / len(answers[task]) / len(heads)
    assert right > often + 0.05


@pytest.mark.parametrize(
    ("change", "refused", "says"),
    [
        ({"head.weight": torch.zeros(7, 24)}, True, "head.weight"),
        ({"tail.weight": torch.zeros(7, 24)}, True, "has a tensor 'tail.weight' that the base has not"),
        ({"a.bias": None}, True, "say --policy 'a.bias=keep'"),
    ],
)
def test_the_table_of_differences_is_true(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, torch.Tensor | None],
    refused: bool,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"a.weight": torch.ones(24, 16), "a.bias": torch.ones(24), "head.weight": torch.ones(5, 24)}
    save_file(base, "base.safetensors")
    expert = {name: one for name, one in {**base, **change}.items() if one is not None}
    save_file({**expert, "a.weight": 1.1 * base["a.weight"]}, "ada.safetensors")
    assert main(["check", "base.safetensors", "ada.safetensors"]) == int(refused)
    assert says in capsys.readouterr().out
    for name in change:
        assert main(["check", "base.safetensors", "ada.safetensors", "--policy", f"{name}=keep"]) == 0


def test_a_prefix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"a.weight": torch.ones(24, 16), "b.weight": torch.ones(5, 24)}
    save_file(base, "base.safetensors")
    save_file({f"module.{name}": 1.1 * one for name, one in base.items()}, "ada.safetensors")
    assert main(["check", "base.safetensors", "ada.safetensors"]) == 1
    assert "module." in capsys.readouterr().out
