"""The cards of the data sets: what every result should be able to say about its pictures."""

from __future__ import annotations

from pathlib import Path

from apgd_teach.data.bundled import BUNDLE, read_manifest
from apgd_teach.data.families import FAMILIES, Family
from apgd_teach.data.idx import read_file
from apgd_teach.data.tasks import family_of
from apgd_teach.tables import Table

__all__ = ["card", "cards_table"]

_CARDS = Path(__file__).parent / "cards"
_REMEDY = "install the package again"


def card(family: str | Family) -> str:
    """The card of a family as Markdown.

    Raises:
        DataError: no such family, or its card is missing.

    Lesson: 01.
    """
    if not isinstance(family, Family):
        family = family_of(str(family))
    return read_file(_CARDS / f"{family.slug}.md", _REMEDY).decode()


def cards_table() -> Table:
    """One row per grey family: whose it is, under which licence, how many images each tier has.

    Raises:
        DataError: the bundle's manifest is missing or damaged.

    Lesson: 01.
    """
    files = read_manifest(BUNDLE)

    def counts(family: Family) -> str:
        train, test = (files[f"{family.slug}-{split}-labels.idx.xz"]["count"] for split in ("train", "test"))
        return f"{train:,} + {test:,}"

    rows = [
        (family.title, family.authors, family.licence, counts(family), "60,000 + 10,000", family.home)
        for family in FAMILIES.values()
    ]
    return Table(
        ["data set", "authors", "licence", "bundled", "full", "source"],
        rows,
        caption="Where the pictures come from",
        note="Counts are training + test images of 28 × 28 grey pixels in ten classes; the last tenth of the training "
        "images serves as validation. The cards in apgd_teach/data/cards say more.",
    )
