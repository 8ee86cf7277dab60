"""Pretraining whose batches are divided: among processes, into pieces, or both.

Every process draws the order and the masks of whole batches, which are functions of the seed and
the step, and takes its rows of them; so what is trained does not depend on how many there are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import NonFiniteLossError
from metalearn.randomness import fold, seeded
from metamae.config.schema import Config
from metamae.data.dataset import Dataset, labelled_batch
from metamae.errors import ConfigError, TrainingError
from metamae.methods.method import Draw, Parts
from metamae.model.dropout import sharing
from metamae.training.batches import batch_indices, pin_batch, pin_draw
from metamae.training.checkpoint import Checkpoint
from metamae.training.devices import autocast
from metamae.training.pieces import Cached, Piece, PieceLoss, PieceResult, Pieces
from metamae.training.ranks import Ranks
from metamae.training.resuming import read_newest
from metamae.training.run import Run, Step


def check_divisible(config: Config, ranks: Ranks) -> None:
    """Refuse what does not go together with several processes, or with pieces of batches.

    Raises:
        ConfigError: naming the settings.
    """
    training, processes = config.training, f"{ranks.size} processes"
    what = processes if ranks.size > 1 else f"training.micro_batch={training.micro_batch}"
    if training.batch_size < ranks.size:
        raise ConfigError(
            f"expected training.batch_size of {ranks.size} at least, an example for every process, "
            f"got {training.batch_size}; lower --nproc-per-node, or use a larger batch"
        )
    for expected, met in (
        ("no learn.settings", not config.learn.settings),
        ("training.compile=off or auto", training.compile != "on"),
        ("training.cuda_graphs=off", training.cuda_graphs == "off"),
        ("adaptation.support_mean=task", config.adaptation.support_mean == "task"),
        ("adaptation.reduction=0", config.adaptation.reduction == 0),
    ):
        if not met:
            raise ConfigError(
                f"expected {expected} with {what}, got others; change it, or train in one process "
                "and in whole batches (training.micro_batch=0)"
            )


def _averaging(module: nn.Module) -> nn.Module:
    """The module under DDP, without buffers sent in every step: batch statistics are joint.

    Gradients lie in the buffers that are exchanged, and are not copied there and back.
    """
    averaging: Any = nn.parallel.DistributedDataParallel
    names = inspect.signature(averaging).parameters  # torch 2.13 has another name for it
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    averaged: nn.Module = averaging(module, gradient_as_bucket_view=True, **{name: False})
    return averaged


class RankedRun(Run):
    """State of a run whose batches are divided."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run_dir: Path,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """See :class:`metamae.training.run.Run`; ``ranks`` are the processes."""
        check_divisible(config, ranks)
        self.ranks = ranks
        super().__init__(config, dataset, run_dir, device)
        size, most = config.training.batch_size, config.training.micro_batch or len(self.data)
        self.shares = self.divide(ranks.rows(size), most)
        self.cached = self.method.is_joint and max(ranks.counts(size)) > most
        self._complete = False

    def wrap(self) -> None:
        """The loss of a piece, under DDP where there are several processes."""
        self.method.check_divisible()
        self.ranks.check_same("configuration", self.config.to_yaml())
        self.ranks.check_same("data (by their fingerprint)", self.fingerprint)
        self.pieces = PieceLoss(self.method, self.ranks, self.config.training.batch_size)
        self.module: Any = self.pieces
        if self.ranks.size > 1:
            self.module = self.averaging(self.pieces)

    def averaging(self, pieces: PieceLoss) -> nn.Module:
        """The module whose backward pass averages gradients over processes."""
        return _averaging(pieces)

    def divide(self, own: slice, most: int) -> tuple[slice, ...]:
        """This process's rows, in pieces of at most ``most``."""
        starts = range(own.start, own.stop, most)
        return tuple(slice(start, min(start + most, own.stop)) for start in starts)

    @property
    def compiles(self) -> bool:
        """Whole batches of one process only."""
        return False

    def prepare(self, number: int) -> Pieces:  # type: ignore[override]
        """This process's pieces of batch ``number``, on the CPU."""
        size, seed = self.config.training.batch_size, self.config.seed
        index = batch_indices(len(self.data), size, seed, number)
        draw = self.draw(number)
        pinned = self.device.type == "cuda"
        pieces = []
        for rows in self.shares:
            places, part = self.method.cut(draw, rows)
            chosen = index[places]
            labelled = self.method.needs_labels
            batch = labelled_batch(self.data, chosen) if labelled else self.data.batch(chosen)
            piece = (pin_batch(batch), pin_draw(part)) if pinned else (batch, part)
            pieces.append(Piece(rows, *piece))
        return Pieces(tuple(pieces), pin_draw(draw) if pinned else draw)

    def put(self, loaded: Pieces) -> Pieces:  # type: ignore[override]
        """The same on the device; the draw of the whole batch only where it is used."""
        moved = (
            Piece(piece.rows, *self.completed(piece.batch, piece.draw)) for piece in loaded.pieces
        )
        draw = loaded.draw.to(self.device) if self.method.is_joint else loaded.draw
        return Pieces(tuple(moved), draw)

    def add_gradient(self, number: int) -> Step:
        """Add the gradient of batch ``number`` of this step, of all processes."""
        accumulate = self.config.training.accumulate
        loaded = self.put(self.input.take(self.step * accumulate + number))
        cached = self.cache(loaded, number) if self.cached else None
        results = []
        for place, piece in enumerate(loaded.pieces):
            last = place == len(loaded.pieces) - 1
            with self._in_step(last and number == accumulate - 1):
                with self.piece_context(piece.rows, number):
                    result = self._loss_of(piece, loaded.draw, cached, place, last)
                (result.loss / accumulate).backward()
            results.append(result)
        self._check_complete(last_batch=number == accumulate - 1)
        joint = cached.joint if cached else results[-1].joint
        value, terms = self._summed(results, joint)
        return Step(value, terms, lambda: loaded)

    def _loss_of(
        self, piece: Piece, draw: Draw, cached: Cached | None, place: int, last: bool
    ) -> PieceResult:
        if cached is None:
            result: PieceResult = self.module(piece, draw)
        else:
            of_parameters = cached.parameters if last else ()
            result = self.module(piece, draw, cached.rows[place], of_parameters)
        return result

    def _in_step(self, last: bool) -> AbstractContextManager[object]:
        """Processes average their gradients once a step, with those of the last piece."""
        if last or self.ranks.size == 1:
            return nullcontext()
        context: AbstractContextManager[object] = self.module.no_sync()
        return context

    def _check_complete(self, last_batch: bool) -> None:
        """Once: a parameter without a gradient would never be averaged."""
        if self._complete or not last_batch:
            return
        without = [
            name for name, p in self.method.named_parameters() if p.requires_grad and p.grad is None
        ]
        if without and self.ranks.size > 1:
            raise ConfigError(
                f"expected a loss that uses every parameter under {self.ranks.size} processes, "
                f"got none in {without[0]}; remove what is not used, or train in one process"
            )
        self._complete = True

    def _summed(
        self, results: Sequence[PieceResult], joint: tuple[Tensor, dict[str, Tensor]] | None
    ) -> tuple[float, dict[str, Tensor | float]]:
        """The batch's loss and terms, of all processes.

        Raises:
            TrainingError: a loss that is not finite, in all processes.
        """
        names = list(results[0].terms)
        sums = [torch.stack([result.own for result in results]).sum()]
        sums += [torch.stack([result.terms[name] for result in results]).sum() for name in names]
        known = [joint[0], *joint[1].values()] if joint else []
        numbers = torch.stack([one.detach().double() for one in (*sums, *known)]).tolist()
        totals = self.ranks.total(numbers[: len(sums)])
        terms: dict[str, Tensor | float] = dict(zip(names, totals[1:], strict=True))
        value = totals[0]
        if joint:
            value += numbers[len(sums)]
            terms |= dict(zip(joint[1], numbers[len(sums) + 1 :], strict=True))
        if not math.isfinite(value):
            shown = ", ".join(f"{name} {number}" for name, number in terms.items())
            raise TrainingError(
                f"expected a finite loss, got {value} at step {self.step + 1} ({shown}); nothing "
                "was updated. Lower training.learning_rate or adaptation.step_size, or look at "
                "the data"
            )
        return value, terms

    def cache(self, loaded: Pieces, number: int) -> Cached:
        """The joint part of a batch's loss, and its gradients in the rows of its pieces."""
        rows = []
        for piece in loaded.pieces:
            with torch.no_grad(), self.piece_context(piece.rows, number):
                rows.append(self.pieces.evaluate(partial(self._rows_of, piece)))
        with autocast(self.config, self.device):
            return self.pieces.evaluate(lambda: self.pieces.cache(rows, loaded.draw))

    def _rows_of(self, piece: Piece) -> tuple[Tensor, ...]:
        return self.method.parts(piece.batch, piece.draw).rows

    @contextmanager
    def piece_context(self, rows: slice, number: int) -> Iterator[None]:
        """Dropout and precision of a piece of a batch of this step."""
        with self.step_context(number), sharing(self.config.training.batch_size, rows):
            yield

    def monitored(self, taken: Step) -> dict[str, float]:
        """Further numbers of a step, means over its batch; of a divided one, those that are."""
        sums: dict[str, float] = {}
        divided = self.ranks.size > 1 or len(self.shares) > 1
        left_out = self.method.of_whole_batches if divided else ()
        for piece in taken.inputs().pieces:
            share = (piece.rows.stop - piece.rows.start) / self.config.training.batch_size
            found = self.pieces.evaluate(partial(self.monitor, piece.batch, piece.draw))
            for name, value in found.items():
                if name in left_out:
                    continue
                sums[name] = sums.get(name, 0.0) + share * value
        return dict(zip(sums, self.ranks.total(list(sums.values())), strict=True))

    def loss_after(self) -> float:
        """Loss of the last step's batch after its update, without dropout; changes nothing."""
        loaded = self.put(self.prepare((self.step - 1) * self.config.training.accumulate))
        seed = fold(self.config.seed, "dropout", self.step)
        self.method.eval()
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(seeded(seed, self.device))
                stack.enter_context(autocast(self.config, self.device))
                return self.pieces.evaluate(lambda: self._loss_of_all(loaded))
        finally:
            self.method.train()

    def _loss_of_all(self, loaded: Pieces) -> float:
        """Loss of a batch, of all processes; NaN where one has no finite loss to refine."""
        parts: list[Parts] = []
        with suppress(NonFiniteLossError):
            parts += [self.method.parts(piece.batch, piece.draw) for piece in loaded.pieces]
        if self.ranks.agree(int(not parts)):
            return math.nan
        sums = [
            float(one.own) * (piece.rows.stop - piece.rows.start)
            for one, piece in zip(parts, loaded.pieces, strict=True)
        ]
        (own,) = self.ranks.total([sum(sums) / self.config.training.batch_size])
        if not self.method.is_joint:
            return own
        rows = [torch.cat(same) for same in zip(*(p.rows for p in parts), strict=True)]
        joint, _ = self.method.joint(self.pieces.gathered(rows), loaded.draw)
        return own + float(joint)

    def write_checkpoint(self) -> None:
        """By process 0."""
        if self.ranks.leads:
            super().write_checkpoint()

    def read_checkpoint(self) -> Checkpoint:
        """By process 0, which gives it to the others."""
        return self.ranks.from_first(lambda: read_newest(self.run_dir, "cpu"))

    def export(self) -> None:
        """By process 0."""
        if self.ranks.leads:
            super().export()
