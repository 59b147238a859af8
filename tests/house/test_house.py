"""The project holds itself to its own rules: style, types, who may import whom, and what is said in two places."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import apgd_teach

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "apgd_teach"
IMPORT_CONTRACTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def say(*command: str, cwd: Path = ROOT) -> tuple[bool, str]:
    """Whether a command went well, and all that it said."""
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, encoding="utf-8", timeout=600)
    return done.returncode == 0, f"{done.stdout}{done.stderr}"


def check(*command: str) -> None:
    """Fail with the words of the tool, not with a traceback of this file's."""
    fine, words = say(*command)
    if not fine:
        pytest.fail(words, pytrace=False)


def project() -> dict[str, Any]:
    """pyproject.toml, read."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """The files under version control; where there is none (an archive of the tree), all but what tools leave there."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        left = {".venv", "site-packages", ".git", "output", "build", "dist", "__pycache__"}
        files = [path for path in ROOT.rglob("*") if not left & set(path.relative_to(ROOT).parts[:-1])]
        files = [path for path in files if not re.match(r"\..*cache|\.hypothesis", path.relative_to(ROOT).parts[0])]
    return [path for path in files if path.is_file()]


def test_style() -> None:
    check("-m", "ruff", "check", ".")


def test_format() -> None:
    check("-m", "ruff", "format", "--check", ".")


def test_ruff_reads_notebooks_too(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": "x=1"}
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "untidy.ipynb").write_text(json.dumps(content))
    fine, words = say("-m", "ruff", "format", "--check", ".", cwd=tmp_path)
    assert not fine
    assert "untidy.ipynb" in words


@pytest.mark.slow
def test_types() -> None:
    check("-m", "mypy")


def test_import_contracts() -> None:
    check("-c", IMPORT_CONTRACTS)


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("merging", "data", "A merge cannot reach data, training or the course"),
        ("data", "merging", "Data knows nothing of what is done with it"),
    ],
)
def test_the_import_contracts_bite(tmp_path: Path, importer: str, imported: str, contract: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "apgd_teach", ignore=shutil.ignore_patterns("bundle", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "apgd_teach" / importer / "sly.py").write_text(f"import apgd_teach.{imported}\n")
    fine, words = say("-c", IMPORT_CONTRACTS, cwd=tmp_path)
    assert not fine
    assert f"{contract} BROKEN" in words


def test_the_contract_of_merging_names_every_room_but_its_own() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    forbidden = set(next(c for c in contracts if c["source_modules"] == ["apgd_teach.merging"])["forbidden_modules"])
    rooms = {f"apgd_teach.{path.stem}" for path in PACKAGE.iterdir() if is_room(path)}
    # These know of no picture and of no trained network: a merge may use them.
    low = ("merging", "errors", "tables", "devices", "guard", "files", "progress")
    harmless = {f"apgd_teach.{name}" for name in low}
    reaching = {f"apgd_teach.{name}" for name in ("__main__",)}
    assert rooms - harmless - reaching <= forbidden, "a new room: forbid it to merging, or say here why not"


def is_room(path: Path) -> bool:
    """A module or a package of ours."""
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()


def test_environment_yml_takes_its_dependencies_from_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    python, installer = conda
    assert installer == "pip"
    version = re.fullmatch(r"python=(3\.\d+)", python)
    assert version
    assert SpecifierSet(project()["project"]["requires-python"]).contains(version[1])
    # No other list: the one line has pip read pyproject.toml.
    assert len(pip) == 1
    assert len(pip[0]) == 1
    here = re.fullmatch(r"-e \.\[(\w+)\]", pip[0][0])
    assert here
    assert here[1] in project()["project"]["optional-dependencies"]


def test_every_dependency_is_between_the_marks_that_run_py_reads() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count("# dependencies: begin") == text.count("# dependencies: end") == 1
    between = text.split("# dependencies: begin")[1].split("# dependencies: end")[0]
    table = project()["project"]
    lists = [table["dependencies"], *table["optional-dependencies"].values()]
    for line in (line for lines in lists for line in lines):
        assert f'"{line}"' in between
        assert Requirement(line).specifier, f"{line} needs a lower bound"


def test_every_version_is_the_same_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert top
    assert project()["project"]["version"] == apgd_teach.__version__ == citation["version"] == top[1]


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = citation["references"]
    assert paper["title"] == "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent"
    assert paper["url"].endswith("2501.01230")


def test_the_first_commands_of_the_readme_are_those_of_run_py() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL))
    commands = re.findall(r"^python3 run\.py (\w+)", blocks, re.MULTILINE)
    assert commands[:2] == ["course", "tests"]


def test_licences_say_what_they_cover() -> None:
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE-text").read_text(encoding="utf-8")
    assert "https://creativecommons.org/licenses/by/4.0/" in text
    assert (ROOT / "apgd_teach/data/bundle/LICENSES.md").is_file()
    for name in project()["project"]["license-files"]:
        assert (ROOT / name).is_file()


def test_every_module_function_and_class_that_is_public_has_a_docstring() -> None:
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        named = [node for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        nodes = [module, *(node for node in named if not node.name.startswith("_"))]
        missing += [f"{path.relative_to(ROOT)}: {getattr(n, 'name', '')}" for n in nodes if not ast.get_docstring(n)]
    assert not missing


# The tests of published notebooks speak of somebody called ada.
PERSONAL = re.compile(r"(?:/home/|/Users/|C:\\+Users\\+)(?!ada\b)\w|/root\b|/work/", re.IGNORECASE)
SECRET = re.compile(r"BEGIN [A-Z ]*PRIVATE KEY|ghp_\w{20}|AKIA[A-Z0-9]{16}|hf_[A-Za-z]{30}|xox[bp]-\d")


def test_no_file_holds_a_path_of_somebody_s_machine_or_a_secret() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for rule in (PERSONAL, SECRET) if (hit := rule.search(text))]
    assert not found


def test_every_notebook_runs_on_the_kernel_that_everyone_has() -> None:
    notebooks = [path for path in tracked() if path.suffix == ".ipynb"]
    for path in notebooks:
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        assert metadata["kernelspec"]["name"] == "python3", path
        assert "widgets" not in metadata, path


def test_ci_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("\npython3 run.py tests")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["tests"]
    assert any("python run.py tests" in step.get("run", "") for step in job["steps"])
    pythons = [*job["strategy"]["matrix"]["python"], *(one["python"] for one in job["strategy"]["matrix"]["include"])]
    assert all(SpecifierSet(project()["project"]["requires-python"]).contains(version) for version in pythons)


def test_whatever_needs_the_whole_course_runs_in_one_process() -> None:
    conftest = runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    wanting = {
        path.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"def \w+\([^)]*\bran\b", path.read_text(encoding="utf-8"))
    }
    assert wanting == set(conftest["COURSE"])
    group = conftest["group_of"]
    assert {group(f"tests/{path}::test_one[a/b]") for path in wanting} == {"course"}
    assert group("tests/data/test_idx.py::test_one") == group("tests/data/test_full.py::test_other")
    assert group("tests/merging/test_ties.py::test_one") != group("tests/merging/test_dare.py::test_one")


def test_a_dev_container_installs_the_course_and_finds_it() -> None:
    found = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert found["postCreateCommand"].split()[:2] == ["python3", "run.py"]
    assert found["postCreateCommand"].split()[2] in runpy.run_path(str(ROOT / "run.py"))["COMMANDS"]
    image, _, version = found["image"].partition(":")
    assert image.endswith("/python")
    assert SpecifierSet(project()["project"]["requires-python"]).contains(version)
    interpreter = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == "${containerWorkspaceFolder}/.venv/bin/python"


def test_the_links_between_documents_lead_to_files() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")):
        text = re.sub(r"(?s)```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", link):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
