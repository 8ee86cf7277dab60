"""Pretraining: a loop over pure functions of (seed, step), and what it leaves in a run folder."""

from metamae.training.callbacks import Callback, CallbackError
from metamae.training.checkpoint import Checkpoint
from metamae.training.devices import choose_device
from metamae.training.outcome import Pretrained
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import History, load_method, read_history

__all__ = [
    "Callback",
    "CallbackError",
    "Checkpoint",
    "History",
    "Pretrained",
    "choose_device",
    "load_method",
    "pretrain",
    "read_history",
]
