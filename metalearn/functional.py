"""Any module as a pure function of its parameters, one copy of them a task: MAML and its kin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from metalearn.errors import ModuleError

Selector = str | Sequence[str] | Callable[[str, nn.Parameter], bool]
"""Which parameters adapt: prefixes of their names, or ``predicate(name, parameter)``."""

_IN_PLACE = ("vmap: inplace", "output with shape")
"""How torch says that a value of every task is written to a tensor that they share."""


class FunctionalModule:
    r"""A module as a pure function :math:`f(\theta, x)`; made by :func:`functional`.

    The module is neither copied nor changed: parameters that do not adapt, and buffers, are its
    own in every call. An outer optimiser steps on ``module.parameters()`` as ever.

    Attributes:
        module: The module.
        names: Names of the parameters that adapt, in the order of ``module.named_parameters()``.

    Example:
        >>> import torch
        >>> from metalearn import functional
        >>> net = functional(torch.nn.Linear(3, 1))
        >>> net.vmap(net.expand(4), torch.randn(4, 5, 3)).shape
        torch.Size([4, 5, 1])
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        """See :func:`functional`."""
        self.module, self.names = module, tuple(names)

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The module's parameters that adapt, by name; tied ones once."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in self.names}

    def expand(self, tasks: int) -> dict[str, Tensor]:
        """The parameters for every task, ``(tasks, ...)`` each: a latent for an adapter.

        They are views, so nothing is copied, and a gradient in them is one in ``params``.
        """
        return {name: p.expand(tasks, *p.shape) for name, p in self.params.items()}

    def __call__(self, params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The module's output under other parameters, as ``torch.func.functional_call``.

        Buffers that the module writes to in place are copies, which are dropped.

        Raises:
            ModuleError: normalisation that would update running statistics, or other names.
        """
        _refuse_running_statistics(self.module)
        if set(params) != set(self.names):
            raise ModuleError(
                f"expected parameters named {_listed(self.names)}, got {_listed(params)}; give "
                "what `params` or `expand` give, refined or not"
            )
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return torch.func.functional_call(self.module, {**buffers, **params}, args, kwargs)

    def vmap(
        self,
        params: dict[str, Tensor],
        *args: Any,
        in_dims: Any = 0,
        randomness: Literal["error", "different", "same"] = "error",
    ) -> Any:
        """Outputs of all tasks, ``(B, ...)``, every task's under its own parameters.

        Args:
            params: Parameters ``(B, ...)``, as of :meth:`expand` or a refined latent.
            args: Inputs of the module, ``(B, ...)``: task first.
            in_dims: As in ``torch.func.vmap``, for ``args``: ``None`` for an input that all tasks
                share; a tuple where the inputs differ in this.
            randomness: As in ``torch.func.vmap``; dropout that is on needs ``"different"``.

        Raises:
            ModuleError: see :meth:`__call__`; also a module that writes to a buffer.
        """
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        call = torch.func.vmap(self, in_dims=(0, *dims), randomness=randomness)
        try:
            return call(params, *args)
        except RuntimeError as error:
            written = any(text in str(error) for text in _IN_PLACE)
            if not written or not any(True for _ in self.module.buffers()):
                raise
            raise ModuleError(
                f"expected {type(self.module).__name__} not to write to its buffers where tasks "
                "are mapped, got an in-place operation on one that they share "
                f"(of {_listed(n for n, _ in self.module.named_buffers())}); use eval mode, or "
                "write buffer = buffer + ... in place of +="
            ) from error

    def __repr__(self) -> str:
        """What adapts."""
        return f"FunctionalModule({type(self.module).__name__}, adapts={list(self.names)})"


def functional(module: nn.Module, adapt: Selector | None = None) -> FunctionalModule:
    r"""A module as a pure function of its parameters, with a copy of them for every task.

    With the module's output :math:`f(\theta, x)` and a support loss :math:`L_b` of task
    :math:`b`, an adapter makes of the result the inner loop of MAML (Finn et al. 2017),

    .. math:: \theta_b^{t+1} = \theta_b^t - \alpha \nabla_\theta L_b\big(f(\theta_b^t, x_b)\big),
        \qquad \theta_b^0 = \theta ,

    and its policy that of first-order MAML, iMAML or Reptile; ``adapt`` that of ANIL.

    Args:
        module: Any module. Batch normalisation has to be in eval mode, or to keep no running
            statistics.
        adapt: The parameters that adapt: a prefix of names that ends at a dot (``"head"``), several
            of them, or a predicate of name and parameter. By default every parameter that requires
            a gradient. A tied parameter has one entry, and is found under each of its names.

    Raises:
        ModuleError: no parameter is chosen, a prefix that fits none, parameters without a shape
            yet, or normalisation that would update running statistics.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, functional
        >>> net = functional(torch.nn.Linear(3, 1))
        >>> x, y = torch.randn(4, 5, 3), torch.randn(4, 5, 1)  # 4 tasks of 5 examples
        >>> loss = lambda params: (net.vmap(params, x) - y).square().mean((1, 2))
        >>> tuned = LatentAdapter(0.1, steps=2)(net.expand(4), loss).latent
        >>> {name: tuple(p.shape) for name, p in tuned.items()}
        {'weight': (4, 1, 3), 'bias': (4, 1)}
        >>> loss(tuned).mean().backward()  # second order, in the layer's own weights
        >>> net.module.weight.grad.shape
        torch.Size([1, 3])
    """
    _refuse_running_statistics(module)
    own = dict(module.named_parameters())
    unshaped = [name for name, p in own.items() if isinstance(p, UninitializedParameter)]
    if unshaped:
        raise ModuleError(
            f"expected parameters with shapes, got lazy ones without: {_listed(unshaped)}; call "
            "the module once on an example"
        )
    first = {id(parameter): name for name, parameter in own.items()}
    chosen = {
        first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if _matches(adapt, name, parameter)
    }
    prefixes = [adapt] if isinstance(adapt, str) else [] if callable(adapt) else adapt or []
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    unmatched = [prefix for prefix in prefixes if not any(_under(prefix, name) for name in every)]
    if unmatched or not chosen:
        asked = f"{_listed(unmatched)} fits none" if unmatched else "none is"
        raise ModuleError(
            f"expected parameters of {type(module).__name__} that adapt, got a choice where "
            f"{asked}; it has {_listed(every)}"
        )
    return FunctionalModule(module, [name for name in own if name in chosen])


def _matches(adapt: Selector | None, name: str, parameter: nn.Parameter) -> bool:
    if adapt is None:
        return parameter.requires_grad
    if isinstance(adapt, str):
        return _under(adapt, name)
    if callable(adapt):
        return bool(adapt(name, parameter))
    return any(_under(prefix, name) for prefix in adapt)


def _under(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _refuse_running_statistics(module: nn.Module) -> None:
    """They would be updated in place, by every inner step of every task."""
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and part.training and part.running_mean is not None:
            raise ModuleError(
                f"expected no running statistics to update in inner steps, got {name or 'the'} "
                f"{type(part).__name__} in training mode; use .eval() to normalise by those it "
                "has, track_running_stats=False for those of each task's batch, or GroupNorm"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
