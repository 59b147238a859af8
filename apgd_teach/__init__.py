"""apgd_teach: a course, in notebooks, on merging fine-tuned models without their data.

The rooms, in the order in which values flow: `data` (what the tasks are), `models`, `training` (recipes, and what
following them makes), `experts` (a base and the experts fine-tuned from it, kept in a `cache`), `merging` (state dicts
in, state dict and audit out), `evaluate`, `references` (what data can buy, for comparison), `landscape` (walks through
weight space), `figures`, `course` (build and run the notebooks), `doctor`, `cli`. Below them all: `errors`, `files`,
`guard`, `devices`, `tables`, `progress`.
"""

__version__ = "0.1.0"
