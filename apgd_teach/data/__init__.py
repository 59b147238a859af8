"""What the tasks are: families of pictures, variants of them, and where they come from (lessons 01 and 08)."""

from apgd_teach.data.cards import card, cards_table
from apgd_teach.data.colour import COLOUR_TIERS, open_colour
from apgd_teach.data.families import COLOUR, FAMILIES, Family, IdxFamily
from apgd_teach.data.source import FamilyData, Source, Split, TaskData, load_task, open_source
from apgd_teach.data.tasks import COLOUR_TASKS, COLOUR_VARIANTS, TASKS, VARIANTS, Task, Variant, task_names

__all__ = [
    "COLOUR",
    "COLOUR_TASKS",
    "COLOUR_TIERS",
    "COLOUR_VARIANTS",
    "FAMILIES",
    "TASKS",
    "VARIANTS",
    "Family",
    "FamilyData",
    "IdxFamily",
    "Source",
    "Split",
    "Task",
    "TaskData",
    "Variant",
    "card",
    "cards_table",
    "load_task",
    "open_colour",
    "open_source",
    "task_names",
]
