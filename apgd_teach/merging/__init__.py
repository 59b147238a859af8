"""Merging: state dicts in, a state dict and an audit out. Nothing here imports data, training or the course."""

from apgd_teach.merging.audit import Audit
from apgd_teach.merging.average import Average
from apgd_teach.merging.merge import Merged, merge
from apgd_teach.merging.method import Layer, Method, Update
from apgd_teach.merging.preflight import Finding, Preflight, preflight
from apgd_teach.merging.registry import METHODS
from apgd_teach.merging.statedict import StateDict, fingerprint, task_vectors
from apgd_teach.merging.surrogate import residual, surrogate, taylor_gap, taylor_gap_with_gradient, weights

__all__ = [
    "METHODS",
    "Audit",
    "Average",
    "Finding",
    "Layer",
    "Merged",
    "Method",
    "Preflight",
    "StateDict",
    "Update",
    "fingerprint",
    "merge",
    "preflight",
    "residual",
    "surrogate",
    "task_vectors",
    "taylor_gap",
    "taylor_gap_with_gradient",
    "weights",
]
