"""The bundled tier: read from inside the package, every file checked against the manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apgd_teach.data.families import Family
from apgd_teach.data.idx import decode_idx, read_file, unpack
from apgd_teach.errors import DataError

__all__ = ["BUNDLE", "read_bundled", "read_manifest"]

BUNDLE = Path(__file__).parent / "bundle"
_REMEDY = "install the package again, or restore this file with 'git checkout'"
MANIFEST = "manifest.json"


def read_manifest(bundle: Path) -> dict[str, Any]:
    """What the manifest says of every file, by its name.

    Raises:
        DataError: the manifest is missing or damaged.
    """
    manifest = bundle / MANIFEST
    try:
        files: dict[str, Any] = dict(json.loads(read_file(manifest, _REMEDY))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"The manifest '{manifest}' is damaged ({error}); {_REMEDY}.") from error
    return files


def read_bundled(family: Family, bundle: Path = BUNDLE) -> tuple[dict[str, NDArray[np.uint8]], dict[str, str]]:
    """One family of the bundle.

    Args:
        family: which one.
        bundle: the folder; the tests hand in damaged copies.

    Returns:
        Arrays by "train_images", …, (image, row, column) or (image,), and SHA-256 of each unpacked file by its name.

    Raises:
        DataError: a file is missing, has another hash than the manifest says, or the manifest itself is damaged.
    """
    manifest, files = bundle / MANIFEST, read_manifest(bundle)
    arrays, hashes = {}, {}
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            name = f"{family.slug}-{split}-{kind}.idx.xz"
            path = bundle / name
            entry = files.get(name)
            if not isinstance(entry, dict) or "sha256" not in entry:
                raise DataError(f"The manifest '{manifest}' does not list '{name}'; {_REMEDY}.")
            packed = read_file(path, _REMEDY)
            if hashlib.sha256(packed).hexdigest() != entry["sha256"]:
                raise DataError(
                    f"The file '{path}' has another SHA-256 than the manifest says ({len(packed):,} bytes); {_REMEDY}."
                )
            content = unpack(packed, path, _REMEDY)
            arrays[f"{split}_{kind}"] = decode_idx(content, f"The file '{path}'")
            hashes[name.removesuffix(".xz")] = hashlib.sha256(content).hexdigest()
    return arrays, hashes
