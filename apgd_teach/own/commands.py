"""`apgd-teach check`, `merge`, `choose`, `report`, `compress`, `completion`: thin, like the rest of the command line.

What is heavy is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apgd_teach.errors import ApgdTeachError, MergeError

if TYPE_CHECKING:
    from apgd_teach.merging import Audit, Plan
    from apgd_teach.merging.dask_engine import OverDask
    from apgd_teach.own.brought import About
    from apgd_teach.own.card import Card
    from apgd_teach.own.inputs import Given
    from apgd_teach.own.judging import Evaluate, Judged

__all__ = ["check", "choose", "completion", "compress", "merge", "report"]


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def check(options: argparse.Namespace) -> int:
    """Say whether files can be merged: 0 if so, 1 if not."""
    from apgd_teach.merging import plan_files
    from apgd_teach.own.inputs import named, opened_safely

    with _ended_like_ctrl_c(), opened_safely(options.base, named(options.experts), _tell) as given:
        plan = plan_files(given.base, given.experts, policy=dict(options.policy))
        print(plan.preflight.to_json() if options.json else _in_words(plan))
    return 1 if plan.preflight.errors else 0


def _in_words(plan: Plan) -> str:
    """Inputs, findings, and what would happen, as tables and sentences."""
    from apgd_teach.merging.checkpoint import precision_of
    from apgd_teach.tables import Table

    rows = [
        (
            name,
            ", ".join(one.shown),
            len(one.specs),
            f"{sum(spec.size for spec in one.specs.values()):,}",
            precision_of(one.specs),
        )
        for name, one in plan.inputs.items()
    ]
    parts = [str(Table(("input", "files", "tensors", "numbers", "precision"), rows))]
    if plan.preflight.findings:
        parts.append(str(plan.preflight.table()))
    else:
        parts.append(f"Pre-flight: {plan.preflight.verdict}")
    if not plan.preflight.errors:
        actions = [one.action for one in plan.decisions.values()]
        counts = ", ".join(f"{actions.count(action)} {word}" for action, word in _WORDS.items() if action in actions)
        kept = [name for name, one in plan.decisions.items() if one.action == "keep"]
        parts.append(
            f"Tensors: {counts}{' (' + _some(kept) + ')' if kept else ''}.\n"
            f"Needs at most {_size(plan.memory_mb)} of memory beside the imports with one worker (the largest layer "
            f"has {_size(plan.largest_mb)} in float32), and {_size(plan.output_mb)} on the disk."
        )
    return _for_a_shell("\n\n".join(parts))


def _size(megabytes: float) -> str:
    """ "450 MB": three digits, in the unit that needs no more."""
    number, unit = next(
        (
            (megabytes * factor, unit)
            for factor, unit in ((1e-3, "GB"), (1, "MB"), (1e3, "kB"))
            if megabytes * factor >= 1
        ),
        (megabytes * 1e6, "bytes"),
    )
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.3g} {unit}"


def _for_a_shell(text: str) -> str:
    """Advice that is given in Python, as an option of these commands."""
    return re.sub(r"policy=\{'([^']*)': '(\w+)'\}", r"--policy '\1=\2'", text)


_WORDS = {"merge": "merged", "average": "averaged", "keep": "kept as the base has them"}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def merge(options: argparse.Namespace) -> int:
    """Merge files on disk, and write what was asked for beside the model."""
    from apgd_teach.merging import merge_files, plan_files
    from apgd_teach.own.inputs import named, opened_safely
    from apgd_teach.own.report import check_target, write

    for path in options.report:
        check_target(path)
    experts = named(options.experts)
    inputs = [options.base, *experts.values()]
    _apart([*options.report, *([options.card] if options.card else [])], inputs, model=options.out)
    brought = _brought(options)
    if options.scheduler and options.engine != "dask":
        raise MergeError("--scheduler is for --engine dask; give both, or none.")
    if options.workers is not None and options.engine == "dask":
        raise MergeError("--workers is for one process; with --engine dask the cluster says how many there are.")
    settings: dict[str, Any] = dict(options.set)
    if reserved := _NO_SETTINGS & set(settings):
        raise MergeError(f"'{min(reserved)}' is no setting of a method; see `apgd-teach merge --help`.")
    common = {
        "policy": dict(options.policy),
        "dtype": options.dtype,
        "device": options.device,
        "workers": options.workers,
    }
    if odd := sorted(set(brought.about.sources) - {"base", *experts}):
        raise MergeError(
            f"'{options.about}' speaks of '{odd[0]}', which is no input; there are: base, {', '.join(experts)}."
        )
    with _ended_like_ctrl_c(), opened_safely(options.base, experts, _tell) as given:
        plan = plan_files(given.base, given.experts, options.out, options.method, **common, **settings)
        if options.dry_run:
            print(f"{_in_words(plan)}\n\nNothing was computed or written.")
            return 1 if plan.preflight.errors else 0
        _passed(plan)
        with _engine(options) as engine:
            audit = merge_files(
                given.base,
                given.experts,
                options.out,
                options.method,
                engine=engine,
                **common,
                **settings,
            )
        audit = given.as_given(audit)
        # Before anything that may fail: the model is there, and this is what there is to know of it.
        for finding in audit.findings:
            _tell(f"Warning: {finding}")
        for path in options.report:
            try:
                write(audit, path)
            except OSError as error:
                raise MergeError(
                    f"'{options.out}' is written, and its report '{path}' is not ({error.strerror}); make room, and "
                    "merge again into another place."
                ) from None
        judged = _judged(options, given, brought.evaluate)
    assert audit.output is not None
    merged = sum(row.policy in ("merge", "column") for row in audit.rows)
    print(
        f"{options.out}: {merged} of {len(audit.rows)} tensors merged by {audit.method}, data used: {audit.data_used}."
    )
    print(f"SHA-256: {audit.output.sha256}")
    for path in options.report:
        print(f"Report: {path}")
    if judged is not None:
        print(f"\n{judged.table(_MERGED)}")
    if options.card is not None:
        _card(audit, judged, brought.about).save(options.card)
        print(f"Card: {options.card}")
    if not options.report and options.card is None:
        print("No record was kept; --report audit.json keeps one.")
    return 0


def _apart(written: list[Path], given: list[Path], model: Path | None = None) -> None:
    """Refuse to write two things into one file, or over an input."""
    seen = set() if model is None else {model.resolve()}
    for path in written:
        place = path.resolve()
        if place in seen:
            raise MergeError(f"'{path}' is to hold two things; give each a name of its own.")
        seen.add(place)
        # Of the model itself `merge_files` says what stands in its way.
        for one in (each.resolve() for each in given):
            if place == one or one in place.parents:
                raise MergeError(f"'{path}' is an input or lies in one, which are never changed; write it elsewhere.")


def _passed(plan: Plan) -> None:
    """Refuse what the pre-flight check found."""
    try:
        plan.preflight.raise_errors("`apgd-teach check` with the same files")
    except MergeError as error:
        raise MergeError(_for_a_shell(str(error))) from None


_NO_SETTINGS = {
    *("base", "experts", "out", "method", "policy", "dtype"),
    *("device", "workers", "engine", "progress"),
}
"""Arguments of `merge_files` that are options of their own here."""

_MERGED = "merged"
"""What the merged model is called beside its base and experts."""


@dataclass(frozen=True)
class _Brought:
    """What a person gave beside models; looked at before anything is computed."""

    evaluate: Evaluate | None
    about: About


def _brought(options: argparse.Namespace) -> _Brought:
    from apgd_teach.own.brought import About, about, evaluation

    if options.about is not None and options.card is None:
        raise MergeError("--about is for a card; give --card FILE too.")
    if options.card is not None:
        if options.card.suffix.lower() not in (".md", ".html"):
            raise MergeError(f"a card goes into a file that ends in .md or .html, and not into '{options.card}'.")
        if not options.card.parent.is_dir():
            raise MergeError(f"there is no folder '{options.card.parent}' for the card; make it first.")
    said = About() if options.about is None else about(options.about)
    return _Brought(None if options.evaluate is None else evaluation(options.evaluate), said)


def _judged(options: argparse.Namespace, given: Given, evaluate: Evaluate | None) -> Judged | None:
    """Every network on every task, each loaded when its turn comes."""
    if evaluate is None:
        return None
    from apgd_teach.own.brought import OnDisk
    from apgd_teach.own.judging import judge

    base = OnDisk(given.base, {"base": given.base})["base"]
    experts, merged = OnDisk(given.base, given.experts), OnDisk(given.base, {_MERGED: options.out})
    try:
        return judge(base, experts, merged, evaluate)
    except ApgdTeachError as error:
        raise MergeError(
            f"'{options.out}' is written, and was not judged, which can be done later in Python (docs/own.md): {error}"
        ) from None


def _card(audit: Audit, judged: Judged | None, said: About) -> Card:
    from apgd_teach.own.card import Card

    return Card(
        said.title,
        audit,
        purpose=said.purpose,
        limits=said.limits,
        sources=said.sources,
        judged=judged,
        label=_MERGED,
        classes=said.classes,
        examples=said.examples,
        chosen=said.chosen,
    )


def choose(options: argparse.Namespace) -> int:
    """Rank methods by an evaluation, and say which merge it speaks for."""
    from apgd_teach.merging import plan_files
    from apgd_teach.own import choosing, judging
    from apgd_teach.own.brought import OnDisk, evaluation
    from apgd_teach.own.inputs import named, opened_safely
    from apgd_teach.own.report import check_target

    for path in options.report:
        check_target(path)
    experts, policy = named(options.experts), dict(options.policy)
    _apart(options.report, [options.base, *experts.values()])
    tried = choosing.candidates(options.method, options.set)
    evaluate = evaluation(options.evaluate)
    with _ended_like_ctrl_c(), opened_safely(options.base, experts, _tell) as given:
        plan = plan_files(given.base, given.experts, policy=policy)
        _passed(plan)
        found = judging.choose(
            OnDisk(given.base, {"base": given.base})["base"],
            dict(OnDisk(given.base, given.experts)),
            evaluate,
            tried,
            priorities=dict(options.priority),
            tolerance=options.tolerance,
            policy=policy,
        )
        inputs = {name: one.digest() for name, one in plan.inputs.items()} if options.report else {}
        inputs |= given.hashes
    line = choosing.command(found, options.base, options.experts, policy)
    print(f"{found.table()}\n\n{found.advice}\n\n{found.judged.table(found.best)}\n")
    print(f"{found.best} is made by:\n\n  {line}\n\n{choosing.CAUTION}")
    for path in options.report:
        choosing.write(found, line, inputs, path)
        print(f"Report: {path}")
    return 0


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[OverDask | None]:
    if options.engine == "local":
        yield None
        return
    from apgd_teach.merging.dask_engine import OverDask

    with OverDask(options.scheduler) as engine:
        yield engine


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Whoever ends the process politely (a shutdown, a batch system) gets the same tidying up as Ctrl-C."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report(options: argparse.Namespace) -> int:
    """Show an audit again, or hold a model against it: 1 if it is another one."""
    from apgd_teach.own.report import is_of, read, write

    audit = read(options.audit)
    if options.model is not None:
        same = is_of(audit, options.model)
        _tell(f"'{options.model}' {'is' if same else 'is not'} the model that '{options.audit}' is of, byte for byte.")
        if not same:
            return 1
    if options.out is not None:
        write(audit, options.out)
        print(f"Report: {options.out}")
    elif options.model is None:
        print(audit.to_markdown(), end="")
    return 0


def compress(options: argparse.Namespace) -> int:
    """Keep what a merge changed in fewer numbers."""
    import torch

    from apgd_teach.merging import low_rank, open_checkpoint
    from apgd_teach.progress import bar

    if options.out.exists():
        raise MergeError(f"'{options.out}' is there already; give a new folder.")
    if not options.out.absolute().parent.is_dir():
        raise MergeError(f"there is no folder '{options.out.parent}' for '{options.out.name}'; make it first.")
    with _ended_like_ctrl_c():
        base = open_checkpoint(options.base, "base")
        model = open_checkpoint(options.model, "the merged model")
        with bar(len(base.specs), "tensor", "low rank") as shown:
            made = low_rank(base, model, energy=options.energy, share=options.share, tick=shown.update)
        made.save(options.out, dtype=getattr(torch, options.dtype) if options.dtype else None)
    print(made.table())
    size = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    print(f"\n{options.out}: {_size(size)}, {100 * made.numbers / made.full:.1f} % of the numbers that changed.")
    if made.numbers >= made.full:
        print("Nothing became smaller: every layer's products would have as many numbers as the layer. Ask for less.")
    return 0


def completion(options: argparse.Namespace) -> int:
    """Print a script with which a shell completes these commands."""
    import shtab

    from apgd_teach.cli import make_parser

    parser = make_parser()
    for each in _parsers(parser):
        for action in each._actions:
            if action.type is Path or action.dest in ("experts", "evaluate"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _parsers(one)
