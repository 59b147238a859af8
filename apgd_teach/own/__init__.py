"""Merge your own: what stands between a person with files on disk and `apgd_teach.merging`."""
