"""What is wrong with a notebook is said before it is run, with the cell's number."""

import pytest

from apgd_teach.course.lint import lint, parameters_of, unknown_parameters
from apgd_teach.course.sources import read_notebook, to_notebook

HEAD = '# %% tags=["parameters"]\nPROFILE = "fast"\n'


@pytest.fixture
def problems(tmp_path):
    def of(text):
        path = tmp_path / "nb.py"
        path.write_text(text, encoding="utf-8")
        return lint(to_notebook(path), "nb")

    return of


def test_a_good_notebook_has_no_problems(source):
    assert lint(read_notebook(source("good")), "good") == []
    assert lint(read_notebook(source("page")), "page") == []


def test_literals_of_every_kind_may_be_parameters(problems):
    assert problems(HEAD + 'N: int = -3  # steps\nRATES = [0.1, 2e-3]\nWHERE = {"a": None, "b": (True,)}\n') == []


@pytest.mark.parametrize("value", ["8 / 255", "float('1')", "N + 1", "[x for x in (1, 2)]", "f'{1}'", "PROFILE"])
def test_a_computed_parameter_is_refused(problems, value):
    (sentence,) = problems(HEAD + f"N = 1\nEPS = {value}\n")
    assert sentence.startswith("nb, cell 1: the parameter EPS is computed")


@pytest.mark.parametrize("statement", ["import os", "a, b = 1, 2", "a = b = 1", "print('x')", "X: int"])
def test_the_parameters_cell_holds_assignments_only(problems, statement):
    (sentence,) = problems(HEAD + statement + "\n")
    assert "is no assignment of a literal" in sentence


def test_exactly_one_cell_holds_parameters(problems):
    assert problems("# %%\n1\n") == ["nb has 0 cells tagged 'parameters'; tag exactly one."]
    assert problems(HEAD + "\n" + HEAD) == ["nb has 2 cells tagged 'parameters' (cells 1, 2); tag exactly one."]


def test_a_notebook_without_profile_is_refused(problems):
    (sentence,) = problems('# %% tags=["parameters"]\nN = 1\n')
    assert "no parameter PROFILE" in sentence


def test_a_cell_that_is_not_python_is_named(problems):
    (sentence,) = problems(HEAD + "\n# %%\nx = = 1\n")
    assert sentence.startswith("nb, cell 2: line 1 is not Python")


def test_ipython_commands_are_no_syntax_errors(problems):
    assert problems(HEAD + "\n# %%\n# %matplotlib inline\nx = 1\n# !echo hello\n") == []


@pytest.mark.parametrize(
    "code",
    [
        "from ipywidgets import interact",
        "from ipywidgets import Output as O",
        "from ipywidgets import *",
        "import ipywidgets\nipywidgets.interactive(print)",
        "import ipywidgets as w\n\n# %%\nwith w.Output():\n    pass",
        "import ipywidgets.widgets as z\nz.interact(print)",
    ],
)
def test_widgets_that_stall_are_refused(problems, code):
    (sentence,) = problems(HEAD + "\n# %%\n" + code + "\n")
    assert "stalls at random" in sentence


def test_a_name_that_only_looks_like_a_stalling_widget_is_allowed(problems):
    assert problems(HEAD + "\n# %%\nclass Output:\n    pass\n\n\nOutput()\nx.interact = 1\n") == []


def test_a_formula_that_cannot_be_shown_is_refused(problems):
    (sentence,) = problems(HEAD + "\n# %% [markdown]\n# An open $\\frac{1}{2$ brace.\n")
    assert sentence.startswith("nb, cell 2: the formula '\\frac{1}{2' cannot be turned into MathML")


def test_parameters_are_read_with_their_defaults(source):
    assert parameters_of(read_notebook(source("good"))) == {"PROFILE": "fast", "SCALE": 0.25}


def test_an_unknown_parameter_is_named_with_those_there_are(source):
    (sentence,) = unknown_parameters(read_notebook(source("good")), "good", ["SCALE", "SCAL"])
    assert sentence == "good has no parameter 'SCAL'; it has: PROFILE, SCALE."
