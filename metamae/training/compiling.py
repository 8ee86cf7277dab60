"""A method's loss as one compiled graph: static shapes, checked against eager, never silent.

The whole loss is traced ``fullgraph``, the inner gradient and its derivative included. What varies
between batches is made static: nearby tokens get a fixed number of slots, of which the weights tell
the filled ones. A batch with more nearby tokens than slots is evaluated by the method itself, so
results do not depend on the number of slots.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from metalearn.randomness import seeded
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import Draw, Method, PretextLoss
from metamae.model.masking import Split

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference of the gradient, compiled and not, by the precision of products."""


class CompiledLoss:
    """``method(batch, draw)``, compiled.

    Args:
        method: Whose loss.
        batch_size: Examples of every batch.
        device: Where the method is.
        cuda_graphs: On CUDA, replay recorded graphs: one launch in place of hundreds.
        memory: Share of the bytes that the compiled graph keeps for its backward pass by itself.
            Below 1, as much as needed is computed again, what is cheap first.
        backend: What ``torch.compile`` makes of the traced graph.

    Attributes:
        seconds: What :meth:`prepare` took.
        failure: Why the method is used without compiling; empty when it is compiled.
        overflows: Batches with more nearby tokens than slots, evaluated by the method itself.

    Example:
        >>> from metamae import build_method, load_dataset, make_config
        >>> from metamae.training.compiling import CompiledLoss
        >>> method = build_method(make_config("sensors"), load_dataset("sensors").inputs)
        >>> CompiledLoss(method, 64, torch.device("cpu")).slots  # for 28 masked tokens
        (6,)
    """

    def __init__(
        self,
        method: Method[Any],
        batch_size: int,
        device: torch.device,
        *,
        cuda_graphs: bool = False,
        memory: float = 1.0,
        backend: str = "inductor",
    ) -> None:
        """See the class."""
        self.method, self.device = method, device
        self.slots: tuple[int, ...] = ()
        if isinstance(method, MAE):
            self.slots = method.network.masking.slot_bound(batch_size)
        self.graphs, self.memory = cuda_graphs and device.type == "cuda", memory
        self.seconds, self.failure, self.overflows = 0.0, "", 0

        def evaluate(batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
            result: PretextLoss = method(batch, draw)
            return result.loss, result.terms, result.support

        self._compiled: Any = torch.compile(
            _with_own_cache(evaluate),
            fullgraph=True,
            dynamic=False,
            backend=backend,
            options=self._options() if backend == "inductor" else None,
        )

    def __call__(self, batch: Batch, draw: Draw) -> PretextLoss:
        """Loss of a batch."""
        fixed = None if self.failure else self._fixed(draw)
        if fixed is None:
            self.overflows += not self.failure
            result: PretextLoss = self.method(batch, draw)
            return result
        return self._run(batch, fixed)

    def _fixed(self, draw: Draw) -> Draw | None:
        """The draw in static shapes; ``None`` if it does not fit. Only splits vary in shape."""
        return draw.in_slots(self.slots) if isinstance(draw, Split) else draw

    def _run(self, batch: Batch, fixed: Draw) -> PretextLoss:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self.memory == 1:
            return PretextLoss(*self._compiled(batch, fixed))
        with functorch.patch(activation_memory_budget=self.memory):  # read when it compiles
            return PretextLoss(*self._compiled(batch, fixed))

    def prepare(self, batch: Batch, draw: Draw) -> None:
        """Compile now, and compare loss and gradient with the method's own on this batch.

        Sets ``failure`` where compiling fails or another gradient comes out. The method is left as
        it was. Under dropout on CUDA, where compiled masks differ, nothing is compared.
        """
        start = time.perf_counter()
        fixed = self._fixed(draw)
        if fixed is None and isinstance(draw, Split):  # any batch will do that fits
            nothing = torch.zeros_like(draw.nearby)
            fixed = replace(draw, nearby=nothing, slots=self.slots)
        with self._unchanged():
            expected = self._gradient(self.method, batch, fixed)  # raises errors of the batch
            try:
                compiled = self._gradient(self._run, batch, fixed)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as fault:
                cause = getattr(fault, "inner_exception", fault)
                text = " ".join((str(cause).splitlines() or [""])[0].split())
                self.failure = f"{type(cause).__name__}: {text[:300]}"
            else:
                self.failure = self._difference(compiled, expected)
        self.seconds = time.perf_counter() - start

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """A context for the loss and its ``backward()``: sums in one order, so the same bits.

        Compiled scatter-adds of several CPU threads otherwise add in the order of their arrival.
        """
        if self.failure or self.device.type != "cpu":
            yield
            return
        settings: Any = torch.utils.deterministic
        before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # costs time, and changes no result of ours
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            settings.fill_uninitialized_memory = before[1]

    def _options(self) -> dict[str, Any]:
        if self.device.type == "cpu":
            # torch reuses memory that a shared region (see model/transformer.py) still needs.
            # Random numbers are those of the eager loss: dropout's masks can then be compared.
            return {
                "allow_buffer_reuse": False,
                "inplace_buffers": False,
                "fallback_random": True,
            }
        return {"triton.cudagraphs": self.graphs}

    def _gradient(self, loss: Any, batch: Batch, draw: Any) -> list[Tensor]:
        """Loss and gradient in every parameter, copied: a recorded graph reuses its memory."""
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        with self.repeatable(), seeded(0, self.device):
            value = loss(batch, draw).loss
            gradients = torch.autograd.grad(
                value, parameters, allow_unused=True, materialize_grads=True
            )
        return [value.detach().clone(), *(gradient.clone() for gradient in gradients)]

    def _difference(self, compiled: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
        """What is wrong with a compiled loss and gradient; empty if nothing is."""
        dropout = (m for m in self.method.modules() if isinstance(m, nn.Dropout))
        random = any(module.p > 0 and module.training for module in dropout)
        if random and self.device.type != "cpu":
            return ""
        if not expected[0].isfinite():  # the caller will stop at this loss
            return ""
        mixed = torch.is_autocast_enabled(self.device.type)
        tolerance = TOLERANCES[torch.bfloat16 if mixed else torch.float32]
        for name, ours, theirs in (
            ("loss", compiled[:1], expected[:1]),
            ("gradient", compiled[1:], expected[1:]),
        ):
            error = _norm([a - b for a, b in zip(ours, theirs, strict=True)]) / _norm(theirs)
            if not error <= tolerance:
                return f"the compiled {name} differs by {error:.1e} of its size"
        return ""

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Buffers (running statistics) get their values back."""
        before = [buffer.clone() for buffer in self.method.buffers()]
        yield
        with torch.no_grad():
            for buffer, value in zip(self.method.buffers(), before, strict=True):
                buffer.copy_(value)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([x.double().square().sum() for x in tensors]).sum().sqrt())


def _with_own_cache(function: Any) -> Any:
    """The same function with a code object of its own.

    torch counts recompilations by code object, and refuses the ninth: every run starts at none.
    """
    return FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
