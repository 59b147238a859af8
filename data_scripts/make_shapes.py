"""Write the generated family as pictures sorted by class: a zip that lesson 08 reads like one of CIFAR-10.

    python data_scripts/make_shapes.py --out shapes.zip

Nothing is read and no random number is drawn from the clock: the same pictures come out wherever this runs, but for a
rare pixel that another machine's sine rounds to the neighbouring level. The course itself draws them as it needs them,
with the same functions.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

from apgd_teach.data.families import COLOUR
from apgd_teach.data.shapes import VERSION, draw_shapes
from apgd_teach.files import write_atomically

__all__ = ["archive", "main"]

# Not the time of making: two archives of the same pictures are the same file.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def archive(per_class: dict[str, int]) -> bytes:
    """A zip of PNG pictures, `train/<class>/00000.png` and so on.

    Args:
        per_class: images of each class by split, "train" and "test".
    """
    classes = COLOUR["shapes"].classes
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for split, count in per_class.items():
            for place, (image, label) in enumerate(zip(*draw_shapes(split, count), strict=True)):
                picture = io.BytesIO()
                Image.fromarray(image).save(picture, "PNG", optimize=True)
                entry = zipfile.ZipInfo(f"{split}/{classes[label]}/{place // 10:05}.png", _EPOCH)
                packed.writestr(entry, picture.getvalue())
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description="Write the generated family of pictures as a zip.")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    parser.add_argument("--train", type=int, default=2000, help="training images of each class (2000)")
    parser.add_argument("--test", type=int, default=400, help="test images of each class (400)")
    given = parser.parse_args(arguments)
    if min(given.train, given.test) < 1:
        print("Ask for at least one image of each class: --train and --test are numbers from 1.", file=sys.stderr)
        return 1
    content = archive({"train": given.train, "test": given.test})
    try:
        write_atomically(given.out, content)
    except OSError as error:
        print(f"'{given.out}' cannot be written ({error.strerror or error}); name another file.", file=sys.stderr)
        return 1
    total = 10 * (given.train + given.test)
    print(f"{total:,} pictures of version {VERSION}, SHA-256 {hashlib.sha256(content).hexdigest()}: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
