"""`apgd-teach check`, `merge`, `report`, `compress`, `completion`: thin, like the rest of the command line.

What is heavy is imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterator
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

__all__ = ["METHODS", "add_commands"]

METHODS = (
    "apgd",
    "apgd_published",
    "average",
    "dare",
    "iso_c",
    "task_arithmetic",
    "task_aware",
    "ties",
    "tsv_m",
    "wudi",
)
"""Their names as they stand in the registry, which takes seconds to import."""

_INPUTS = """
BASE and EXPERT are .safetensors files, ….safetensors.index.json of sharded ones, folders of Hugging Face models, or
(for EXPERT) folders of LoRA adapters as PEFT saves them. PyTorch's pickles (.pt, .pth, .bin, .ckpt) are read with
weights_only=True, which runs nothing of them. An expert goes by the name of its file or folder, or as NAME=PATH.
"""

_CHECK = f"""
Looks at the headers of all files, and says whether they can be merged, what would happen to each tensor, and what it
would need. No tensor is read, nothing is written. The exit code is 0 if they can be merged, 1 if not.
{_INPUTS}"""

_CHECK_EXAMPLES = """
examples:
  apgd-teach check base.safetensors ada.safetensors ben.safetensors
  apgd-teach check llama/ law=llama-law/ code=adapters/code/ --policy 'lm_head.*=keep'
"""

_MERGE = f"""
Merges experts into one model, a layer at a time, and writes it when it is whole: after an error, Ctrl-C or a kill the
place is as it was, and the same command starts afresh.
{_INPUTS}"""

_MERGE_EXAMPLES = """
examples:
  apgd-teach merge base.safetensors ada.safetensors ben.safetensors --out merged.safetensors --report audit.json
  apgd-teach merge llama/ llama-law/ llama-code/ --method tsv_m --dtype bfloat16 --out merged/ --report card.html
  apgd-teach merge base.pt ada.pt ben.pt --method apgd --set protect=auto --set flatten=0.5 --out merged.safetensors
  apgd-teach merge base.safetensors ada.safetensors --policy 'head.*=keep' --out merged.safetensors --dry-run
  apgd-teach merge base/ ada/ ben/ --out merged/ --evaluate my_eval.py --card card.html --about about.json
"""

_REPORT_EXAMPLES = """
examples:
  apgd-teach report audit.json                               the record, as Markdown
  apgd-teach report audit.json --out audit.html              a page with figures
  apgd-teach report audit.json --model merged.safetensors    is this file the one that the record is of?
"""

_COMPRESS = """
Keeps what MODEL has changed in BASE as products of two thin matrices, in the layout of a LoRA adapter. The folder
is an expert for `check` and `merge` like any other: merging it alone, by average, gives the model back.
"""

_COMPRESS_EXAMPLES = """
examples:
  apgd-teach compress base.safetensors merged.safetensors --energy 0.9 --out small/
  apgd-teach compress base.safetensors merged.safetensors --share 0.1 --dtype bfloat16 --out smaller/
"""

_COMPLETION_EXAMPLES = """
examples:
  apgd-teach completion bash > ~/.local/share/bash-completion/completions/apgd-teach
  apgd-teach completion zsh > "${fpath[1]}/_apgd-teach"
"""


def add_commands(commands: Any, setting: Callable[[str], tuple[str, object]]) -> None:
    """Add the five commands.

    Args:
        commands: what argparse's `add_subparsers` gave.
        setting: reads NAME=VALUE.
    """

    def parser(name: str, does: str, description: str, examples: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=does,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return made

    def inputs(to: argparse.ArgumentParser) -> None:
        to.add_argument("base", metavar="BASE", type=Path, help="the model that the experts were fine-tuned from")
        to.add_argument("experts", metavar="EXPERT", nargs="+", help="one or more, as PATH or NAME=PATH")
        to.add_argument(
            "--policy",
            type=_policy,
            action="append",
            default=[],
            metavar="PATTERN=WHAT",
            help="what happens to tensors of such names: merge, average or keep (the base's)",
        )

    check = parser("check", "can these files be merged? (headers only)", _CHECK, _CHECK_EXAMPLES)
    check.set_defaults(command=_check)
    inputs(check)
    check.add_argument("--json", action="store_true", help="for programs")

    merge = parser("merge", "merge files on disk into a new one", _MERGE, _MERGE_EXAMPLES)
    merge.set_defaults(command=_merge)
    inputs(merge)
    merge.add_argument("--method", choices=METHODS, default="apgd", help="how (default: apgd)")
    merge.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="a setting of the method"
    )
    merge.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="a new .safetensors file, or a folder, sharded as BASE is",
    )
    merge.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE", help="the audit, as .json, .md or .html"
    )
    merge.add_argument(
        "--evaluate",
        metavar="FILE.py[:FUNCTION]",
        help="your function evaluate(state_dict, task): what is lost per task and class is printed, and is in the card",
    )
    merge.add_argument("--card", type=Path, metavar="FILE", help="a model card, as .md or .html")
    merge.add_argument("--about", type=Path, metavar="FILE", help="what the card cannot know, as .json (docs/own.md)")
    merge.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu", help="default: cpu")
    merge.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "float64"),
        help="of the floats that are written (default: as BASE has them)",
    )
    merge.add_argument("--workers", type=int, metavar="N", help="layers in work at once (default: 1)")
    merge.add_argument(
        "--engine", choices=("local", "dask"), default="local", help="who computes the layers (default: this process)"
    )
    merge.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, tcp://…; without it two processes here are one"
    )
    merge.add_argument("--dry-run", action="store_true", help="look at everything, compute and write nothing")

    report = parser(
        "report", "read the audit of a merge", "Reads an audit, the .json of merge --report.", _REPORT_EXAMPLES
    )
    report.set_defaults(command=_report)
    report.add_argument("audit", metavar="FILE", type=Path, help="the audit, as .json")
    report.add_argument("--out", type=Path, metavar="FILE", help="write it as .md, .html or .json (default: print it)")
    report.add_argument("--model", type=Path, metavar="PATH", help="say whether this is the model that came out")

    compress = parser("compress", "a merged model as a small difference from its base", _COMPRESS, _COMPRESS_EXAMPLES)
    compress.set_defaults(command=_compress)
    compress.add_argument("base", metavar="BASE", type=Path, help="the model that it was merged onto")
    compress.add_argument("model", metavar="MODEL", type=Path, help="the merged model")
    how = compress.add_mutually_exclusive_group(required=True)
    how.add_argument("--energy", type=float, metavar="E", help="every layer keeps this share of its ‖M‖², 0 to 1")
    how.add_argument("--share", type=float, metavar="S", help="all layers together keep this share of their numbers")
    compress.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    compress.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the two matrices")

    completion = parser(
        "completion", "a script with which a shell completes what you type", "Prints a script.", _COMPLETION_EXAMPLES
    )
    completion.set_defaults(command=_completion)
    completion.add_argument("shell", choices=("bash", "zsh"))


def _policy(text: str) -> tuple[str, str]:
    """PATTERN=WHAT; a name may hold an equals sign, so the last one counts."""
    pattern, sign, action = text.rpartition("=")
    if not sign or not pattern or not action:
        raise argparse.ArgumentTypeError(f"'{text}' is not PATTERN=WHAT, as in 'head.*=keep'")
    return pattern, action


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from apgd_teach.merging import plan_files
    from apgd_teach.own.inputs import named, opened_safely

    with opened_safely(options.base, named(options.experts), _tell) as given:
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


def _merge(options: argparse.Namespace) -> int:
    from apgd_teach.merging import merge_files, plan_files
    from apgd_teach.own.inputs import named, opened_safely
    from apgd_teach.own.report import check_target, write

    for path in options.report:
        check_target(path)
        if path.absolute() == options.out.absolute():
            raise MergeError(f"'{path}' cannot be the model and its report; give two names.")
    brought = _brought(options)
    if options.scheduler and options.engine != "dask":
        raise MergeError("--scheduler is for --engine dask; give both, or none.")
    settings: dict[str, Any] = dict(options.set)
    if reserved := {"policy", "dtype", "device", "workers", "progress", "out", "method", "base", "experts"} & set(
        settings
    ):
        raise MergeError(f"'{min(reserved)}' is no setting of a method; see `apgd-teach merge --help`.")
    common = {"policy": dict(options.policy), "dtype": options.dtype}
    with _ended_like_ctrl_c(), opened_safely(options.base, named(options.experts), _tell) as given:
        plan = plan_files(given.base, given.experts, options.out, options.method, **common, **settings)
        if options.dry_run:
            print(f"{_in_words(plan)}\n\nNothing was computed or written.")
            return 1 if plan.preflight.errors else 0
        try:
            plan.preflight.raise_errors("`apgd-teach check` with the same files")
        except MergeError as error:
            raise MergeError(_for_a_shell(str(error))) from None
        with _engine(options) as engine:
            audit = merge_files(
                given.base,
                given.experts,
                options.out,
                options.method,
                device=options.device,
                workers=options.workers,
                engine=engine,
                **common,
                **settings,
            )
        audit = given.as_given(audit)
        for path in options.report:
            write(audit, path)
        judged = _judged(options, given, brought.evaluate)
    for finding in audit.findings:
        _tell(f"Warning: {finding}")
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
        raise MergeError(f"'{options.out}' is written, and was not judged: {error}") from None
    except Exception as error:  # whatever a function of the reader's own may raise
        raise MergeError(
            f"'{options.out}' is written, and was not judged: '{options.evaluate}' raised {type(error).__name__} "
            f"({error}); mend it, and judge the model in Python (docs/own.md)."
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
    )


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


def _report(options: argparse.Namespace) -> int:
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


def _compress(options: argparse.Namespace) -> int:
    import torch

    from apgd_teach.merging import low_rank, open_checkpoint
    from apgd_teach.progress import bar

    if options.out.exists():
        raise MergeError(f"'{options.out}' is there already; give a new folder.")
    with _ended_like_ctrl_c():
        base = open_checkpoint(options.base, "base")
        model = open_checkpoint(options.model, "the merged model")
        with bar(len(base.specs), "tensor", "low rank") as shown:
            made = low_rank(base, model, energy=options.energy, share=options.share, tick=shown.update)
        made.save(options.out, dtype=getattr(torch, options.dtype) if options.dtype else None)
    print(made.table())
    size = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    print(f"\n{options.out}: {_size(size)}, {100 * made.numbers / made.full:.1f} % of the numbers that changed.")
    return 0


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from apgd_teach.cli import make_parser

    parser = make_parser()
    for each in _parsers(parser):
        for action in each._actions:
            if action.type is Path or action.dest == "experts":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _parsers(one)
