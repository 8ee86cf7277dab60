"""What pretraining returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metamae.methods.method import Method
from metamae.training.run_folder import History


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A finished pretraining run.

    Attributes:
        method: The trained method, on its device, in eval mode.
        history: Logged numbers.
        steps: Optimisation steps taken.
        seconds: Time spent in them (data, loss, gradients, update), without compiling, logging and
            saving.
        compiling: Time that ``training.compile`` took in this call, 0 without it.
        cpu_seconds: Processor time of all threads in the steps of this call; unlike ``seconds``
            without those before a resume. Other processes disturb it less.
    """

    method: Method[Any]
    history: History
    steps: int
    seconds: float
    compiling: float = 0.0
    cpu_seconds: float = 0.0
