"""What can be seen to be wrong with a notebook before it is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from apgd_teach.course.mathml import bad_formulas
from apgd_teach.errors import CourseError

__all__ = ["lint", "parameters_of", "unknown_parameters"]

_STALLING = {"interact", "interact_manual", "interactive", "interactive_output", "Output"}


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _tree(code: str) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(code))


def _parameters_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(number, cell) for number, cell in enumerate(notebook.cells, 1) if "parameters" in _tags(cell)]


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """The name and the value of `NAME = value` or `NAME: type = value`."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, value = statement.target, statement.value
    else:
        return None
    return (target.id, value) if isinstance(target, ast.Name) else None


def parameters_of(notebook: NotebookNode) -> dict[str, Any]:
    """Names and defaults in the cell tagged `parameters`; values that are no plain literals are left out."""
    found: dict[str, Any] = {}
    for _, cell in _parameters_cells(notebook):
        for statement in _tree(cell.source).body:
            pair = _assignment(statement)
            if pair:
                try:
                    found[pair[0]] = ast.literal_eval(pair[1])
                except ValueError:
                    continue
    return found


def unknown_parameters(notebook: NotebookNode, name: str, wanted: Iterable[str]) -> list[str]:
    """One sentence per parameter in `wanted` that the notebook does not have (papermill would only log it)."""
    known = parameters_of(notebook)
    return [
        f"{name} has no parameter '{parameter}'; it has: {', '.join(known) or 'none'}."
        for parameter in wanted
        if parameter not in known
    ]


def _lint_parameters(notebook: NotebookNode, name: str) -> list[str]:
    cells = _parameters_cells(notebook)
    if len(cells) != 1:
        where = " (cells " + ", ".join(str(number) for number, _ in cells) + ")" if cells else ""
        return [f"{name} has {len(cells)} cells tagged 'parameters'{where}; tag exactly one."]
    number, cell = cells[0]
    problems, names = [], []
    for statement in _tree(cell.source).body:
        pair = _assignment(statement)
        if pair is None:
            problems.append(
                f"{name}, cell {number}: '{ast.unparse(statement)}' is no assignment of a literal to one name; keep "
                "only those in the parameters cell."
            )
            continue
        names.append(pair[0])
        try:
            ast.literal_eval(pair[1])
        except ValueError:
            problems.append(
                f"{name}, cell {number}: the parameter {pair[0]} is computed ({ast.unparse(pair[1])}), and a computed "
                "value is not computed again when another parameter is changed from outside; write a plain literal, "
                "or compute it in a later cell."
            )
    if "PROFILE" not in names:
        problems.append(f'{name}, cell {number}: there is no parameter PROFILE; add PROFILE = "fast".')
    return problems


def _lint_widgets(trees: dict[int, ast.Module], name: str) -> list[str]:
    nodes = [(number, node) for number, tree in trees.items() for node in ast.walk(tree)]
    # A notebook imports ipywidgets in one cell and uses it in another, under a name of its own.
    modules, used = set(), set()
    for number, node in nodes:
        if isinstance(node, ast.Import):
            modules |= {item.asname or item.name for item in node.names if item.name.partition(".")[0] == "ipywidgets"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ipywidgets":
            used |= {(number, item.name) for item in node.names if item.name in _STALLING or item.name == "*"}
    for number, node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _STALLING and ast.unparse(node.value) in modules:
            used.add((number, node.attr))
    return [
        f"{name}, cell {number}: uses ipywidgets' {item}, which stalls at random when a notebook is run by a program "
        "and hides the errors of its callbacks; use a slider with .observe() that sets the value of an HTML widget."
        for number, item in sorted(used)
    ]


def lint(notebook: NotebookNode, name: str | Path) -> list[str]:
    """One sentence for each thing that is wrong with a notebook and can be seen without running it.

    Checked: every code cell parses; exactly one cell is tagged `parameters`, holds plain literals only and has a
    PROFILE; no `ipywidgets.interact`, `interactive` or `Output`; every formula can be shown as MathML.

    Args:
        notebook: the notebook, run or not.
        name: what the sentences call it.
    """
    name, problems = str(name), []
    trees: dict[int, ast.Module] = {}
    parses = True
    for number, cell in enumerate(notebook.cells, 1):
        where = f"{name}, cell {number}"
        if cell.cell_type == "markdown":
            problems += [f"{where}: {sentence}" for sentence in bad_formulas(cell.source)]
        elif cell.cell_type == "code":
            try:
                trees[number] = _tree(cell.source)
            except SyntaxError as error:
                parses = False
                problems.append(f"{where}: line {error.lineno} is not Python ({error.msg}); correct it.")
    problems += _lint_widgets(trees, name)
    return _lint_parameters(notebook, name) + problems if parses else problems


def refuse_unknown(notebook: NotebookNode, name: str, wanted: Iterable[str]) -> None:
    """Raise before anything runs where a parameter is wanted that the notebook does not have.

    Raises:
        CourseError: naming every such parameter.
    """
    unknown = unknown_parameters(notebook, name, wanted)
    if unknown:
        raise CourseError(" ".join(unknown))
