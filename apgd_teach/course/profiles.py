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
        joint_steps: optimiser steps of joint training, in that comparison.
        adapt_steps: steps of the references that learn from unlabelled images.
        heat_rates: at how many learning rates experts are fine-tuned beside the mild and the hot one.
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
    joint_steps: int
    adapt_steps: int
    heat_rates: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("fast", 150, 100, 1000, 9, 200, 9, 400, 3, 75, 40, 1),
        Profile("full", 250, 250, 2000, 21, 1000, 21, 1000, 8, 1000, 200, 2),
    )
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
