"""Does pretraining save labels on these data? Candidates side by side, on the same few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metamae.config.names import check_method
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import ConfigError
from metamae.evaluation.candidates import CANDIDATES, applicable, describe, title_of
from metamae.evaluation.drawing import ALL, Drawing, Stage
from metamae.evaluation.feature_cache import POOLINGS, Pooling
from metamae.evaluation.metrics import commonest_share
from metamae.experiments.compare_plan import (
    PLAN,
    Load,
    Piece,
    Plan,
    average,
    drawing_of,
    gather,
    keep_open,
    read_plan,
)
from metamae.experiments.compare_record import (
    DECISION,
    cautions_of,
    facts_of,
    plain_decision,
    remarks_of,
    write_comparison,
)
from metamae.experiments.workers import choose_workers, limited_threads, run_side_by_side
from metamae.files import write_json
from metamae.locks import locked
from metamae.progress import Nested, Reporter
from metamae.report.label_curves import Curves, decide
from metamae.report.label_page import Comparison
from metamae.training.auto import MINUTES, auto_config

COSTLY = ("metamae", "umae", "mae", "scratch", "raw_boosting")
"""What is started first, so that all end together."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """A comparison in an output folder.

    Attributes:
        load: Opens the data: a module's function, or a ``functools.partial`` of one, for it is sent
            to worker processes.
        out: Folder of runs, pieces, tables, figure and page.
        device: Where to train.
        candidates: What to compare, names of :data:`~metamae.evaluation.candidates.CANDIDATES`; all
            that the data allow when empty.
        seeds: Seeds of pretraining.
        draws: Draws of labels.
        minutes: Budget of each pretraining run; 5 where neither this nor ``steps`` is given.
        steps: Steps of each pretraining run instead.
        overrides: Overrides of the preset ``auto``.
        workers: Pieces at once, each in a process of its own; ``None`` for as many as there are
            cores, on a CPU. With 1, all runs in this process.
        threads: Threads of each on a CPU.
    """

    load: Load
    out: Path
    device: torch.device
    candidates: tuple[str, ...] = ()
    seeds: int = 2
    draws: int = 20
    minutes: float | None = None
    steps: int | None = None
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what does not depend on the data."""
        choose_workers(self.workers, self.device)
        for what, least in (("seeds", 1), ("draws", 2), ("threads", 1)):
            if getattr(self, what) < least:
                raise ConfigError(f"expected {what} >= {least}, got {getattr(self, what)}")
        if self.minutes is not None and self.steps is not None:
            raise ConfigError("expected minutes or steps of pretraining, got both")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"expected at least 1 step of pretraining, got {self.steps}")
        for name in self.candidates:
            if name not in CANDIDATES:
                known = ", ".join(CANDIDATES)
                raise ConfigError(f"expected candidates among {known}, got {name!r}")

    def run(self, reporter: Reporter, dataset: Dataset | None = None) -> Comparison:
        """Measure what is missing, decide, look at the test rows, and write it all down.

        Args:
            reporter: Shows progress.
            dataset: What ``load`` gives, where that is open already.

        Returns:
            What was found; the files :data:`ROWS`, :data:`TABLE`, :data:`FIGURE` and :data:`PAGE`
            in the folder hold it too.

        Raises:
            ConfigError: the folder was begun with other settings.
            DataError: data without a task, too few rows, or data that changed.
            LockedError: another process is at work on the folder.
            Exception: what made a piece fail; finished ones are kept.
        """
        with locked(self.out):
            dataset = self.load() if dataset is None else dataset
            drawing, names = drawing_of(dataset, self.draws), self._names(dataset)
            numbers = drawing.numbers
            plan = self._plan(dataset, names, reporter)
            keep_open(dataset, plan.data)
            pieces, pooling = self._validate(plan, numbers, reporter)
            curves = self._curves(dataset, drawing, plan, pieces)
            few, every = decide(curves, curves.few), decide(curves, ALL)
            write_json(self.out / DECISION, [plain_decision(decision) for decision in (few, every)])
            pieces += self._measure(self._pieces(plan, "test", pooling), numbers, reporter)
            curves = replace(curves, values=gather(pieces, numbers))
            comparison = Comparison(
                name=dataset.name,
                curves=curves,
                few=few,
                every=every,
                what={
                    name: describe(CANDIDATES[name], dataset, pooling.get(name, "mean"))
                    for name in names
                },
                facts=facts_of(dataset, plan, self.device, self.threads),
                remarks=remarks_of(dataset, drawing),
                cautions=cautions_of(plan),
            )
            write_comparison(comparison, plan, self.out)
        return comparison

    def _names(self, dataset: Dataset) -> tuple[str, ...]:
        possible = applicable(dataset)
        names = tuple(name for name in possible if name in (self.candidates or possible))
        pretrained = [name for name in names if CANDIDATES[name].pretrained]
        if "raw_logistic" not in names or not pretrained:
            raise ConfigError(
                "expected raw_logistic and a pretrained candidate (mae, umae, metamae) to compare, "
                f"got {', '.join(names) or 'none'}"
            )
        return names

    def _plan(self, dataset: Dataset, names: tuple[str, ...], reporter: Reporter) -> Plan:
        """The plan of this folder; a budget of minutes becomes steps when it is begun."""
        minutes = MINUTES if self.minutes is None and self.steps is None else self.minutes
        plan = Plan(
            data=fingerprint(dataset),
            candidates=names,
            seeds=self.seeds,
            draws=self.draws,
            minutes=float(minutes or 0),
            steps=self.steps or 0,
            overrides=self.overrides,
            configs={},
        )
        earlier = read_plan(self.out / PLAN, plan.settings())
        if earlier is not None:
            return earlier
        methods = [CANDIDATES[name].method for name in names if CANDIDATES[name].pretrained]
        configs = {method: self._config(dataset, method, minutes) for method in methods}
        first = configs[methods[0]]
        untrained = replace(first.training, steps=0, warmup_steps=0)
        configs["random"] = replace(first, method="random", training=untrained)
        plan = replace(plan, configs=configs)
        plan.write(self.out / PLAN)
        steps = ", ".join(f"{method} {configs[method].training.steps}" for method in methods)
        reporter.say(f"steps of pretraining: {steps}")
        return plan

    def _config(self, dataset: Dataset, method: str, minutes: float | None) -> Config:
        check_method(method)
        with limited_threads(self.threads, self.device):
            return auto_config(
                dataset,
                method=method,
                minutes=minutes,
                steps=self.steps,
                overrides=self.overrides,
                device=self.device,
            )

    def _validate(
        self, plan: Plan, numbers: Sequence[int], reporter: Reporter
    ) -> tuple[list[Piece], dict[str, Pooling]]:
        """Pieces on validation cuts, of the pooling that does best there, and which that is."""
        encoders = [name for name in plan.candidates if CANDIDATES[name].seeded]
        pieces: list[Piece] = []
        averages: dict[Pooling, dict[str, float]] = {}
        for kind in POOLINGS:
            all_of_it = self._pieces(plan, "validation", dict.fromkeys(encoders, kind))
            wanted = [p for p in all_of_it if kind == "mean" or p.candidate in encoders]
            averages[kind] = average(self._measure(wanted, numbers, reporter))
            pieces += wanted
        pooling: dict[str, Pooling] = {}
        for name in encoders:
            found = {kind: averages[kind][name] for kind in POOLINGS}
            pooling[name] = max(found, key=found.__getitem__)
        chosen = [p for p in pieces if p.pooling == pooling.get(p.candidate, "mean")]
        return chosen, pooling

    def _pieces(self, plan: Plan, stage: Stage, pooling: Mapping[str, Pooling]) -> list[Piece]:
        pieces = []
        for name in plan.candidates:
            candidate = CANDIDATES[name]
            config = plan.configs[candidate.method or "random"]
            for seed in range(plan.seeds if candidate.seeded else 1):
                pieces.append(
                    Piece(
                        candidate=name,
                        seed=seed,
                        stage=stage,
                        config=replace(config, seed=seed),
                        load=self.load,
                        data=plan.data,
                        draws=plan.draws,
                        out=self.out,
                        device=self.device,
                        pooling=pooling.get(name, "mean"),
                    )
                )
        return pieces

    def _measure(
        self, pieces: list[Piece], numbers: Sequence[int], reporter: Reporter
    ) -> list[Piece]:
        """The pieces, after what is missing of them was measured."""
        jobs = [piece for piece in pieces if not piece.read().keys() >= set(numbers)]
        jobs.sort(key=lambda job: (*COSTLY, job.candidate).index(job.candidate))
        workers = min(choose_workers(self.workers, self.device), max(1, len(jobs)))
        test = any(piece.stage == "test" for piece in pieces)
        title = f"compare: {'test rows' if test else 'validation cuts'}"
        done, total = len(pieces) - len(jobs), len(pieces)
        with reporter.stage(title, total=total, done=done, unit="pieces") as bar:
            if workers > 1:
                for _, outcome in run_side_by_side(jobs, workers, self.threads, bar):
                    if isinstance(outcome, Exception):
                        raise outcome
                    bar.advance()
                return pieces
            with limited_threads(self.threads, self.device):
                for job in jobs:
                    job.run(Nested(bar))
                    bar.advance()
        return pieces

    def _curves(
        self, dataset: Dataset, drawing: Drawing, plan: Plan, pieces: Sequence[Piece]
    ) -> Curves:
        return Curves(
            titles={name: title_of(CANDIDATES[name], dataset) for name in plan.candidates},
            pretrained=tuple(name for name in plan.candidates if CANDIDATES[name].pretrained),
            numbers=drawing.numbers,
            by_class=drawing.by_class,
            all_labels=drawing.all_labels(),
            metric=dataset.need_task().metric,
            test_rows=len(dataset.need("test")),
            values=gather(pieces, drawing.numbers),
            commonest=commonest_share(dataset),
        )
