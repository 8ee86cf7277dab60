"""Evaluation of frozen features: the protocols by name, and what each of them does."""

from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.features import Features, compute_features, extract_features
from metamae.evaluation.few_labels import probe_few_labels
from metamae.evaluation.metrics import METRICS
from metamae.evaluation.neighbours import predict_by_neighbours
from metamae.evaluation.probe import fit_probe
from metamae.evaluation.protocols import PROTOCOLS, describe_protocol, evaluate, labels_of
from metamae.evaluation.result import Evaluation
from metamae.evaluation.tuned import fit_tuned, hold_out

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Evaluation",
    "Features",
    "compute_features",
    "describe_protocol",
    "evaluate",
    "extract_features",
    "fit_probe",
    "fit_tuned",
    "hold_out",
    "labels_of",
    "predict_by_neighbours",
    "probe_few_labels",
    "run_features",
]
