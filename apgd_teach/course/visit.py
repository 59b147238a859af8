"""Move the sliders of a notebook that has run, as a reader would: a program that runs a notebook moves none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import ipywidgets

from apgd_teach.errors import CourseError

__all__ = ["visit"]


def visit() -> None:
    """Put every input of ipywidgets at its ends, or at each of its options, and back where it stood.

    Sliders and number fields, lists to choose from, and yes-or-no boxes; a panel visits its own settings when it is
    made. What is observed runs as it would for a reader. The runner calls this in the notebook's kernel, after the last
    cell.

    Raises:
        CourseError: something that observes a widget raised; it names the widget and where it stood.
    """
    # By the type itself: some objects do not like to be asked for their class.
    for widget in [one for one in gc.get_objects() if issubclass(type(one), ipywidgets.ValueWidget)]:
        for key, value in list(_places(widget)):
            try:
                setattr(widget, key, value)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")
                name = getattr(widget, "description", "") or type(widget).__name__
                raise CourseError(
                    f"the widget '{name}' fails when it is put at {_label(widget, key, value)} ({said})"
                ) from error


def _places(widget: Any) -> Iterator[tuple[str, object]]:
    """Where a reader can put it, the last one being where it stands: (trait, value)."""
    if widget.has_trait("index") and widget.has_trait("options"):
        last = len(widget.options) - 1
        if isinstance(widget, ipywidgets.SelectMultiple):
            yield from (("index", ()), ("index", tuple(range(last + 1))))
        elif isinstance(widget.index, tuple):
            yield from (("index", ends) for ends in ((0, 0), (0, last), (last, last)))
        else:
            yield from (("index", place) for place in range(last + 1))
        yield "index", widget.index
    elif isinstance(widget, ipywidgets.Combobox):
        yield from (("value", value) for value in (*widget.options, widget.value))
    elif isinstance(widget, ipywidgets.Checkbox | ipywidgets.ToggleButton):
        yield from (("value", not widget.value), ("value", widget.value))
    elif widget.has_trait("min") and widget.has_trait("max"):
        low, high = widget.min, widget.max
        if isinstance(widget, ipywidgets.FloatLogSlider):
            # Its ends are exponents.
            low, high = widget.base**low, widget.base**high
        if isinstance(widget.value, tuple):
            yield from (("value", ends) for ends in ((low, low), (low, high), (high, high)))
        else:
            yield from (("value", low), ("value", high))
        yield "value", widget.value


def _label(widget: Any, key: str, value: Any) -> str:
    if key == "index" and isinstance(value, int):
        return f"option {value + 1} of {len(widget.options)}"
    if key == "index" and isinstance(value, tuple):
        return f"options {', '.join(str(place + 1) for place in value) or 'none'} of {len(widget.options)}"
    return str(value)
