"""The project's own exceptions: each carries one sentence saying what is wrong, where, and what to do."""

__all__ = ["ApgdTeachError", "CacheError", "CourseError", "DataAccessError", "DataError", "FigureError", "MergeError"]


class ApgdTeachError(Exception):
    """Whatever a user can put right. The command line prints its sentence instead of a traceback."""


class DataError(ApgdTeachError):
    """A data set cannot be had as asked: missing, damaged, unknown, no network, no room on the disk."""


class CacheError(ApgdTeachError):
    """The cache of trained networks cannot be read or written."""


class MergeError(ApgdTeachError):
    """These state dicts cannot be merged, or not with this method."""


class DataAccessError(ApgdTeachError):
    """Something asked for data while a merge was running (lesson 02: what "without data" means)."""


class CourseError(ApgdTeachError):
    """A notebook cannot be built or run as asked."""


class FigureError(ApgdTeachError):
    """A figure cannot be drawn, at this setting of its sliders or at all."""
