"""Merging: state dicts in, a state dict and an audit out. Nothing here imports data, training or the course."""

from apgd_teach.merging.apgd import PAPER, Apgd, Solution
from apgd_teach.merging.audit import Audit
from apgd_teach.merging.average import Average
from apgd_teach.merging.checkpoint import open_checkpoint
from apgd_teach.merging.dare import Dare
from apgd_teach.merging.iso_c import IsoC
from apgd_teach.merging.laboratory import Laboratory, make_laboratory
from apgd_teach.merging.low_rank import LowRank, low_rank
from apgd_teach.merging.merge import Merged, merge
from apgd_teach.merging.method import Layer, Method, Update
from apgd_teach.merging.modules import policy_of
from apgd_teach.merging.preflight import Finding, Preflight, preflight
from apgd_teach.merging.published import ApgdPublished
from apgd_teach.merging.registry import METHODS
from apgd_teach.merging.statedict import StateDict, fingerprint, task_vectors
from apgd_teach.merging.stream import Plan, merge_files, plan_files, preflight_files
from apgd_teach.merging.subspace import principal_angles, projector, shared_basis, soft_projector
from apgd_teach.merging.surrogate import residual, surrogate, taylor_gap, taylor_gap_with_gradient, weights
from apgd_teach.merging.task_arithmetic import TaskArithmetic
from apgd_teach.merging.task_aware import TaskAware
from apgd_teach.merging.ties import Ties
from apgd_teach.merging.tsv_m import TsvM
from apgd_teach.merging.wudi import Wudi

__all__ = [
    "METHODS",
    "PAPER",
    "Apgd",
    "ApgdPublished",
    "Audit",
    "Average",
    "Dare",
    "Finding",
    "IsoC",
    "Laboratory",
    "Layer",
    "LowRank",
    "Merged",
    "Method",
    "Plan",
    "Preflight",
    "Solution",
    "StateDict",
    "TaskArithmetic",
    "TaskAware",
    "Ties",
    "TsvM",
    "Update",
    "Wudi",
    "fingerprint",
    "low_rank",
    "make_laboratory",
    "merge",
    "merge_files",
    "open_checkpoint",
    "plan_files",
    "policy_of",
    "preflight",
    "preflight_files",
    "principal_angles",
    "projector",
    "residual",
    "shared_basis",
    "soft_projector",
    "surrogate",
    "task_vectors",
    "taylor_gap",
    "taylor_gap_with_gradient",
    "weights",
]
