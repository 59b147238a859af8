"""How large each run of the course is: the profile that a notebook is told to use, and its stamp in the output."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from apgd_teach.errors import CourseError

__all__ = ["MIME", "PROFILES", "VISIT", "Profile", "use_profile"]

MIME = "application/vnd.apgd-teach.profile+json"
"""The MIME type under which a notebook records the profile it really used; the runner reads it back."""


VISIT = "APGD_TEACH_VISIT"
"""Environment variable that the runner sets. Where it is set, a panel draws every slider's ends when it is made, and
raises where it cannot: the runner moves no slider, and learns so of what a learner would run into."""


@dataclass(frozen=True)
class Profile:
    """Sizes of a run. A profile changes how much is computed, never what: no step is left out in any of them.

    Attributes:
        name: "fast" or "full".
        base_steps: optimiser steps of the shared base.
        expert_steps: optimiser steps of each expert.
        test_images: test images per task; the first so many of the data set's own order.
        plane_points: points along each side of the loss plane.
        plane_images: test images per task at each point of the plane.
        path_points: points along a straight line between two networks.
        sweep_images: images per task at each of many settings that are tried.
        compared_tasks: tasks of the comparison over seeds, which trains several pools.
        compared_steps: optimiser steps of each expert in that comparison.
        compared_images: images per task that its networks are scored on.
        joint_steps: optimiser steps of joint training, in that comparison.
        adapt_steps: steps of the references that learn from unlabelled images.
        reference_images: images per task that the references without labels look at.
        heat_rates: at how many learning rates experts are fine-tuned beside the mild and the hot one.
        colour_per_class: training images of each class of the colour pictures, where there are as many.
        colour_variants: tasks of the colour pools that keep all classes; two halves of the classes come beside them.
        colour_base_steps: optimiser steps of their bases.
        colour_steps: optimiser steps of their experts.
        colour_batch: images per step of both.
        colour_images: images per task that their networks are scored on.
        own_images: images per task, in the lesson on a reader's own files.
        student_steps: optimiser steps of its small networks.
    """

    name: str
    base_steps: int
    expert_steps: int
    test_images: int
    plane_points: int
    plane_images: int
    path_points: int
    sweep_images: int
    compared_tasks: int
    compared_steps: int
    compared_images: int
    joint_steps: int
    adapt_steps: int
    reference_images: int
    heat_rates: int
    colour_per_class: int
    colour_variants: int
    colour_base_steps: int
    colour_steps: int
    colour_batch: int
    colour_images: int
    own_images: int
    student_steps: int


_SIZES = {
    "base_steps": (120, 250),
    "expert_steps": (50, 250),
    "test_images": (600, 2000),
    "plane_points": (9, 15),
    "plane_images": (120, 1000),
    "path_points": (9, 21),
    "sweep_images": (200, 1000),
    "compared_tasks": (3, 8),
    "compared_steps": (50, 250),
    "compared_images": (150, 1000),
    "joint_steps": (30, 1000),
    "adapt_steps": (20, 200),
    "reference_images": (64, 256),
    "heat_rates": (1, 2),
    "colour_per_class": (200, 2000),
    "colour_variants": (3, 8),
    "colour_base_steps": (90, 600),
    "colour_steps": (45, 120),
    "colour_batch": (64, 128),
    "colour_images": (500, 2000),
    "own_images": (300, 2000),
    "student_steps": (60, 1500),
}
"""By attribute, its size in "fast" and in "full"."""

PROFILES = {
    name: Profile(name, **{attribute: sizes[place] for attribute, sizes in _SIZES.items()})
    for place, name in enumerate(("fast", "full"))
}


def use_profile(name: str) -> Profile:
    """The sizes to use, with a stamp left in the notebook's output saying so.

    Args:
        name: "fast" (minutes on two cores) or "full" (what is published).

    Raises:
        CourseError: there is no such profile.

    Lesson: every notebook calls it once, in its first code cell.
    """
    if name not in PROFILES:
        raise CourseError(f"there is no profile '{name}'; use one of: {', '.join(PROFILES)}.")
    profile = PROFILES[name]
    from IPython.display import display

    note = "sizes for a quick look; never quote them" if name == "fast" else "the published sizes"
    display({MIME: asdict(profile), "text/plain": f"Profile: {name} ({note})."}, raw=True)
    return profile
