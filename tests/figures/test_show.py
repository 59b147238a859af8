from __future__ import annotations

import base64

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from traitlets.config import Config

from apgd_teach.figures import show
from apgd_teach.figures.style import figure, png

WORDS = "A line that rises from 1 to 2."


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython as a notebook has it, with nothing of the tester's own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    settings = Config()
    settings.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=settings)
    InteractiveShell.clear_instance()


def line() -> Figure:
    made, (axes,) = figure(width=3, height=2)
    axes.plot([1, 2])
    return made


def test_a_notebook_gets_the_picture_and_its_words_twice(shell) -> None:
    with capture_output() as captured:
        assert show(line(), WORDS) is None
    (output,) = captured.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert base64.b64decode(output.data["image/png"]) == png(line())
    assert output.data["text/plain"] == WORDS
    assert output.metadata == {"image/png": {"alt": WORDS}}
    assert captured.stdout == ""


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_words_is_not_shown(shell, alt: str) -> None:
    with capture_output() as captured, pytest.raises(ValueError, match="a figure needs words for those who cannot see"):
        show(line(), alt)
    assert captured.outputs == []
