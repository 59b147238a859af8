"""What the tasks are: two families of pictures, eight variants of them, and where they come from (lesson 01)."""

from apgd_teach.data.cards import card, cards_table
from apgd_teach.data.families import FAMILIES, Family
from apgd_teach.data.source import FamilyData, Source, Split, TaskData, load_task, open_source
from apgd_teach.data.tasks import TASKS, VARIANTS, Task, Variant, task_names

__all__ = [
    "FAMILIES",
    "TASKS",
    "VARIANTS",
    "Family",
    "FamilyData",
    "Source",
    "Split",
    "Task",
    "TaskData",
    "Variant",
    "card",
    "cards_table",
    "load_task",
    "open_source",
    "task_names",
]
