"""The options of `apgd-teach check`, `merge`, `choose`, `report`, `compress` and `completion`, with help, examples."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apgd_teach.own import commands as run

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
would need. No tensor is read (but of a pickle, which has to be read whole and lies in a temporary folder
meanwhile), nothing is written. The exit code is 0 if they can be merged, 1 if not.
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

_CHOOSE = f"""
Merges by several methods and settings, asks your evaluation about each on every task, ranks them, says whether to
merge at all, and prints the `apgd-teach merge` that makes the best. No model is written. In memory are the base, the
experts and two merges.

The evaluation is a function evaluate(state_dict, task), of your validation set: examples that no accuracy will be
reported on, since those that choose a method make it look better than it is. A task is an expert's name.
{_INPUTS}"""

_CHOOSE_EXAMPLES = """
examples:
  apgd-teach choose base.safetensors ada.safetensors ben.safetensors --evaluate my_eval.py --report choice.html
  apgd-teach choose base/ ada/ ben/ --evaluate my_eval.py:validate --method average --method apgd --priority ada=3
  apgd-teach choose base/ ada/ ben/ --evaluate my_eval.py --method ties --set trim=0.1 --set trim=0.3 --tolerance 1
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
    """Add these commands.

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
    check.set_defaults(command=run.check)
    inputs(check)
    check.add_argument("--json", action="store_true", help="for programs")

    merge = parser("merge", "merge files on disk into a new one", _MERGE, _MERGE_EXAMPLES)
    merge.set_defaults(command=run.merge)
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
        help="a .safetensors file, or a folder, sharded as BASE is; one that is there is replaced by the whole new one",
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

    choose = parser("choose", "which method does your evaluation speak for?", _CHOOSE, _CHOOSE_EXAMPLES)
    choose.set_defaults(command=run.choose)
    inputs(choose)
    choose.add_argument(
        "--evaluate",
        required=True,
        metavar="FILE.py[:FUNCTION]",
        help="your function evaluate(state_dict, task): predicted and right classes, or a score from 0 to 100",
    )
    choose.add_argument(
        "--method",
        choices=METHODS,
        action="append",
        default=[],
        help="only this one, and others that are named (default: the course's choice of methods and settings)",
    )
    choose.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the one method that is named; given twice, both values are tried",
    )
    choose.add_argument(
        "--priority",
        type=_priority,
        action="append",
        default=[],
        metavar="TASK=WEIGHT",
        help="of a task in the mean that ranks, 0 or more (default: 1)",
    )
    choose.add_argument(
        "--tolerance",
        type=_points,
        default=2.0,
        metavar="POINTS",
        help="that a task may lose against its own expert before it is kept apart (default: 2)",
    )
    choose.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE", help="the choice, as .json, .md or .html"
    )

    report = parser(
        "report", "read the audit of a merge", "Reads an audit, the .json of merge --report.", _REPORT_EXAMPLES
    )
    report.set_defaults(command=run.report)
    report.add_argument("audit", metavar="FILE", type=Path, help="the audit, as .json")
    report.add_argument("--out", type=Path, metavar="FILE", help="write it as .md, .html or .json (default: print it)")
    report.add_argument("--model", type=Path, metavar="PATH", help="say whether this is the model that came out")

    compress = parser("compress", "a merged model as a small difference from its base", _COMPRESS, _COMPRESS_EXAMPLES)
    compress.set_defaults(command=run.compress)
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
    completion.set_defaults(command=run.completion)
    completion.add_argument("shell", choices=("bash", "zsh"))


def _policy(text: str) -> tuple[str, str]:
    """PATTERN=WHAT; a name may hold an equals sign, so the last one counts."""
    pattern, sign, action = text.rpartition("=")
    if not sign or not pattern or not action:
        raise argparse.ArgumentTypeError(f"'{text}' is not PATTERN=WHAT, as in 'head.*=keep'")
    return pattern, action


def _priority(text: str) -> tuple[str, float]:
    """TASK=WEIGHT; a name may hold an equals sign, so the last one counts."""
    task, sign, number = text.rpartition("=")
    weight = _finite(number)
    if not sign or not task or weight is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not TASK=WEIGHT with a weight of 0 or more, as in ada=2")
    return task, weight


def _points(text: str) -> float:
    points = _finite(text)
    if points is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of points, 0 or more")
    return points


def _finite(text: str) -> float | None:
    """A finite number, 0 or more; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
