"""A multilevel problem: levels over each other, stepped, saved and resumed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from metalearn.errors import MultilevelError
from metalearn.multilevel.bridge import build_engine
from metalearn.multilevel.levels import Level

Influences: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Progress:
    """What one step of the lowest level, and of the levels above that followed, came to.

    Attributes:
        step: Steps of the lowest level so far.
        terms: Per level that took a step, its loss (``"loss"``) and what else it logs.
    """

    step: int
    terms: dict[str, dict[str, float]]


class Multilevel:
    r"""Levels of optimisation over each other, solved together by Betty (Choe et al. 2023).

    .. math::
        \min_\lambda F(w^*(\lambda), \lambda) \quad\text{with}\quad
        w^*(\lambda) = \arg\min_w L(w, \lambda)

    Each level takes gradient steps on its own loss; after ``unroll_steps`` of them the level above
    takes one, along the sum of its direct gradient and of the hypergradient through the levels
    below. In its first step a level looks at which losses depend on which levels: it learns through
    every chain of levels whose losses read each other, several inner problems side by side included
    (:mod:`metalearn.multilevel.dependence`).

    A run is a function of the levels, the data and the seed: state saved after any step and loaded
    into a problem built alike continues to the same bits. Draws from torch's global generators in
    a loss are frozen for as long as its batch is; draws from a generator of your own are not.

    Args:
        levels: From the lowest to the highest, at least two.
        influences: For each level above others, the names of the levels whose loss its parameters
            enter: all of them. By default the upper of two levels enters the lower one; three or
            more need to be told.
        seed: Seed of all draws.
        device: Where batches are moved to; modules are to be there already. ``None`` leaves
            batches where they are.

    Raises:
        MultilevelError: levels that do not fit each other.
        MissingBettyError: no Betty, or another version.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.levels import Level
        >>> from metalearn.multilevel.problem import Multilevel
        >>> from metalearn.multilevel.ranges import Positive
        >>> weight, decay = torch.nn.Linear(1, 1, bias=False), Positive(1.0)
        >>> fit = lambda x: (weight(x) - 1).square().mean()
        >>> inner = Level(
        ...     name="weights",
        ...     module=weight,
        ...     optimiser=torch.optim.SGD(weight.parameters(), lr=0.1),
        ...     loss=lambda x: fit(x) + decay() * weight.weight.square().sum(),
        ...     batches=lambda step: torch.ones(1, 1),
        ... )
        >>> outer = Level(
        ...     name="decay",
        ...     module=decay,
        ...     optimiser=torch.optim.SGD(decay.parameters(), lr=1.0),
        ...     loss=fit,
        ...     batches=lambda step: torch.ones(1, 1),
        ... )
        >>> problem = Multilevel([inner, outer])
        >>> problem.run(30)
        >>> decay().item() < 0.9  # decay only hurts here
        True
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        influences: Influences | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """See the class."""
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise MultilevelError("expected a CUDA device, found none; use device='cpu'")
        self.levels, self.seed = tuple(levels), seed
        self.influences = _check_levels(self.levels, influences)
        _check_methods(self.levels, self.influences)
        _check_top(self.levels[-1].name, self.influences)
        self._engine, self._problems = build_engine(
            self.levels, self.influences, seed=seed, device=self.device
        )

    @property
    def steps(self) -> dict[str, int]:
        """Steps taken, by level."""
        return {name: problem.count for name, problem in self._problems.items()}

    def step(self) -> Progress:
        """One step of the lowest level, and of those above whose turn it is.

        Raises:
            NonFiniteLossError: a loss or a hypergradient that is not finite, before it does harm.
            DisconnectedLossError: a loss that does not depend on a level that it has to read.
            MultilevelError: a loss that is not a scalar, or that depends on more than was told.
        """
        before = self.steps
        self._engine.global_step += 1
        self._engine.train_step()
        taken = [name for name, count in self.steps.items() if count > before[name]]
        return Progress(
            self._problems[self.levels[0].name].count,
            {name: dict(self._problems[name].terms) for name in taken},
        )

    def run(
        self,
        steps: int,
        *,
        progress: Callable[[int, int], None] | None = None,
        log: Callable[[Progress], None] | None = None,
    ) -> None:
        """Take steps until the lowest level has taken ``steps``, those before a resume included.

        Args:
            steps: Total number of steps of the lowest level.
            progress: Called with the steps done and the total, after each.
            log: Called with what each step came to.
        """
        while (done := self.steps[self.levels[0].name]) < steps:
            result = self.step()
            if log is not None:
                log(result)
            if progress is not None:
                progress(done + 1, steps)

    def state_dict(self) -> dict[str, Any]:
        """Modules, optimisers, schedulers and counters: tensors and plain values only."""
        return {
            "seed": self.seed,
            "levels": {name: problem.save() for name, problem in self._problems.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, to the same bits.

        Raises:
            MultilevelError: a state of other levels or of another seed.
        """
        found, own = list(state["levels"]), list(self._problems)
        if found != own or state["seed"] != self.seed:
            raise MultilevelError(
                f"expected the state of levels {own} with seed {self.seed}, got {found} with seed "
                f"{state['seed']}; build the problem as it was built when it was saved"
            )
        for name, problem in self._problems.items():
            problem.restore(state["levels"][name])


def _check_levels(levels: Sequence[Level], influences: Influences | None) -> Influences:
    names = [level.name for level in levels]
    if len(levels) < 2 or len(set(names)) < len(names):
        raise MultilevelError(
            f"expected at least two levels of different names, lowest first, got {names}"
        )
    _check_disjoint(levels)
    if influences is None:
        if len(levels) > 2:
            raise MultilevelError(
                f"expected `influences` for {len(levels)} levels: which losses the parameters of a "
                f"level enter directly, e.g. {{{names[-1]!r}: [{names[0]!r}]}}"
            )
        influences = {names[1]: [names[0]]}
    for upper, lowers in influences.items():
        if isinstance(lowers, str):
            raise MultilevelError(
                f"expected a list of names for level {upper!r} in `influences`, got {lowers!r}; "
                f"write [{lowers!r}]"
            )
        for name in (upper, *lowers):
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise MultilevelError(
                    f"expected levels among {', '.join(names)} in `influences`, got {name!r}{hint}"
                )
            if name != upper and names.index(name) >= names.index(upper):
                raise MultilevelError(
                    f"expected level {upper!r} to influence levels below it, {name!r} is above; "
                    "list the levels lowest first"
                )
        if not lowers or upper in lowers:
            raise MultilevelError(f"expected level {upper!r} to influence a level below it")
    return influences


def _check_methods(levels: Sequence[Level], influences: Influences) -> None:
    for level in levels[:-1]:
        level.check_lower()
        if level.name in influences and level.method.exact_inverse:
            raise MultilevelError(
                f"expected darts or sama in level {level.name!r}, which itself learns through "
                f"levels below, got {level.method.name}: the curvature of its loss would have to "
                "go through them"
            )


def _check_top(name: str, influences: Influences) -> None:
    if name not in influences:
        raise MultilevelError(
            f"expected `influences` to say which losses the parameters of the top level {name!r} "
            f"enter, got {dict(influences)}: it would learn from its direct gradient alone"
        )


def _check_disjoint(levels: Sequence[Level]) -> None:
    owner: dict[int, str] = {}
    for level in levels:
        for parameter in level.parameters:
            other = owner.setdefault(id(parameter), level.name)
            if other != level.name:
                raise MultilevelError(
                    f"expected every parameter in one level, levels {other!r} and {level.name!r} "
                    "share one; give each optimiser its own parameters"
                )
