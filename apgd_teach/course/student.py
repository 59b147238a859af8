"""A learner's version of a notebook, derived from its source by two rules, and the way back.

1. A cell tagged `solution` is left out.
2. In a code cell, the lines from `# your code: begin` to `# your code: end` become `# your code` and `...`.
"""

from __future__ import annotations

import copy
import hashlib
import re

from nbformat import NotebookNode

from apgd_teach.errors import CourseError

__all__ = ["TAG", "problems_in", "put_back", "student_version"]

TAG = "solution"
_BEGIN, _END, _GAP = "# your code: begin", "# your code: end", "# your code"
_MARKED = re.compile(rf"^(?P<indent>[ ]*){_BEGIN}\n(?P<code>.*?)^(?P=indent){_END}$", re.MULTILINE | re.DOTALL)
_LEFT = re.compile(rf"^[ ]*{_GAP}\n[ ]*\.\.\.$", re.MULTILINE)


def student_version(notebook: NotebookNode) -> NotebookNode:
    """What a learner is handed: the text, the exercises to be solved, and no outputs.

    Args:
        notebook: of a source. It is not changed.

    Raises:
        CourseError: a marker has no partner, or a cell tagged `solution` holds code, which a later one might need.
    """
    made = copy.deepcopy(notebook)
    made.cells = [cell for cell in made.cells if not _is_solution(cell)]
    for number, cell in enumerate(made.cells, 1):
        if cell.cell_type != "code":
            continue
        cell.source = _MARKED.sub(rf"\g<indent>{_GAP}\n\g<indent>...", cell.source)
        if _BEGIN in cell.source or _END in cell.source:
            raise CourseError(f"cell {number}: '{_BEGIN}' and '{_END}' belong together, each on a line of its own.")
        cell.outputs, cell.execution_count = [], None
        cell["id"] = hashlib.sha256(f"{number}\0{cell.source}".encode()).hexdigest()[:12]
    return made


def put_back(student: NotebookNode, notebook: NotebookNode) -> NotebookNode:
    """A learner's version with the solutions of its source in the gaps: the source again, but for its solution cells.

    Args:
        student: what `student_version` made. It is not changed.
        notebook: the source's notebook.

    Raises:
        CourseError: the two have not the same cells, or not the same gaps.
    """
    made, kept = copy.deepcopy(student), [cell for cell in notebook.cells if not _is_solution(cell)]
    if len(made.cells) != len(kept):
        raise CourseError(f"the learner's version has {len(made.cells)} cells where its source has {len(kept)}.")
    for cell, whole in zip(made.cells, kept, strict=True):
        if cell.cell_type == "code":
            pieces = _LEFT.split(cell.source)
            solutions = [match[0] for match in _MARKED.finditer(whole.source)]
            if len(pieces) != len(solutions) + 1:
                raise CourseError(f"the learner's version has other gaps than its source: {cell.source[:60]!r}.")
            cell.source = "".join(piece + solution for piece, solution in zip(pieces, [*solutions, ""], strict=True))
    return made


def problems_in(student: NotebookNode) -> int:
    """How many gaps a learner's version leaves to be filled."""
    return sum(len(_LEFT.findall(cell.source)) for cell in student.cells if cell.cell_type == "code")


def _is_solution(cell: NotebookNode) -> bool:
    if TAG not in cell.metadata.get("tags", []):
        return False
    if cell.cell_type == "code":
        raise CourseError(f"a code cell is tagged '{TAG}'; only text may be left out: {cell.source[:60]!r}.")
    return True
