"""apgd_teach: a course, in notebooks, on merging fine-tuned models without their data.

The rooms, in the order in which values flow: `data` (what the tasks are), `models`, `experts` (a base and the
experts fine-tuned from it, with `cache`), `merging` (state dicts in, state dict and audit out), `evaluate`,
`figures`, `course` (build and run the notebooks), `cli`.
"""

__version__ = "0.1.0"
