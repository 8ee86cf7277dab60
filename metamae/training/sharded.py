"""Pretraining whose weights, gradients and moments are divided among processes, by FSDP2.

A unit's weights are put together from all processes for its own forward and backward pass, and
let go after it (:meth:`metamae.methods.method.Method.shard_units`). The root unit is everything
else: its weights are whole from the beginning of a step to its end. FSDP2 works by hooks on units'
outputs and inputs, which an inner step's ``torch.autograd.grad`` would set off in the middle of a
forward pass, and which know nothing of the second derivative. So what a latent is refined by, the
decoder, is of the root unit, where no hook comes between the two derivatives: they are those of
one process.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import CheckpointError, ConfigError
from metamae.methods.building import build_method
from metamae.methods.method import Method
from metamae.model.transformer import Block
from metamae.training.checkpoint import Checkpoint
from metamae.training.memory import in_memory
from metamae.training.model_folder import write_model
from metamae.training.pieces import PieceLoss
from metamae.training.ranked import RankedRun
from metamae.training.ranks import Ranks
from metamae.training.resuming import check_same_optimiser, newest
from metamae.training.run_folder import CHECKPOINT, newest_shards
from metamae.training.shards import (
    MODEL,
    MOMENTS,
    check_sums,
    read_shards,
    read_state,
    sizes_in,
    write_shards,
)
from metamae.training.soundness import all_finite


def check_shardable(config: Config, ranks: Ranks) -> None:
    """Refuse what shards of weights do not go together with.

    Raises:
        ConfigError: naming what.

    Example:
        >>> from metamae import make_config
        >>> from metamae.training.ranks import Ranks
        >>> from metamae.training.sharded import check_shardable
        >>> check_shardable(make_config("sensors"), Ranks(0, 2))
    """
    training = config.training
    if ranks.size == 1:
        raise ConfigError(
            "expected several processes with training.parallel=fsdp, got one; start it as torchrun "
            "--nproc-per-node N -m metamae pretrain ..., or use training.parallel=ddp"
        )
    whole = {
        "target.kind": (config.target.kind, "values"),
        "masking.rule": (config.masking.rule, "random"),
    }
    for name, (value, plain) in whole.items():
        if value != plain:
            raise ConfigError(
                f"expected {name}={plain} with training.parallel=fsdp, got {value}, which looks at "
                "the encoder outside of the steps that put its weights together; use "
                "training.parallel=ddp"
            )
    if training.micro_batch == 1 and training.batch_size % ranks.size:
        raise ConfigError(
            f"expected training.batch_size that {ranks.size} processes divide, or "
            "training.micro_batch of 2 at least, with training.parallel=fsdp, whose processes take "
            f"equally many pieces, got {training.batch_size} and 1; change one of them"
        )


class ShardedRun(RankedRun):
    """State of a run of several processes, each of which keeps a share of the weights."""

    def build(self, dataset: Dataset) -> Method[Any]:
        """On the CPU, from which every process takes its shares to the device."""
        check_shardable(self.config, self.ranks)
        with in_memory(self.config, self.device, self.ranks.size):
            return build_method(self.config, dataset.inputs, dataset.task).train()

    def averaging(self, pieces: PieceLoss) -> nn.Module:
        """The same module, its weights divided."""
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))
        for unit in self.method.shard_units():
            fully_shard(unit, mesh=mesh)
            if isinstance(unit, Block):  # a decoder's first block is asked for more than its result
                register_fsdp_forward_method(unit, "project")
        fully_shard(pieces, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(pieces, "evaluate")
        return pieces

    def divide(self, own: slice, most: int) -> tuple[slice, ...]:
        """As many pieces as every other process has: putting weights together takes all of them."""
        count = math.ceil(max(self.ranks.counts(self.config.training.batch_size)) / most)
        shares = (Ranks(number, count).rows(own.stop - own.start) for number in range(count))
        return tuple(slice(own.start + rows.start, own.start + rows.stop) for rows in shares)

    def _in_step(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are divided after every piece: whole ones need not fit."""
        return nullcontext()

    def not_finite(self) -> list[str]:
        """Names of states of which any process's share is not finite."""
        tensors = self.tensors()
        ruined = []
        for name, kind in (("the weights", MODEL), ("the optimiser", MOMENTS)):
            state = {key: value for key, value in tensors.items() if key.startswith(f"{kind}/")}
            if self.ranks.agree(int(not all_finite(state))):
                ruined.append(name)
        return ruined

    def tensors(self) -> dict[str, Any]:
        """Weights, buffers and moments by name, this process's shares of them."""
        self.reshard()
        found: dict[str, Any] = {f"{MODEL}/{n}": x for n, x in self.method.state_dict().items()}
        for name, parameter in self.method.named_parameters():
            for key, moment in self.optimiser.state[parameter].items():
                found[f"{MOMENTS}/{name}/{key}"] = moment
        return found

    def reshard(self) -> None:
        """Let go of what an evaluation put together."""
        root: Any = self.pieces
        root.reshard()

    @property
    def saved_at(self) -> Path:
        """The newest folder of shards; before there is one, the file."""
        return newest_shards(self.run_dir) or self.run_dir / CHECKPOINT

    def write_checkpoint(self) -> None:
        """Every process its shares; one file of an earlier step is removed."""
        groups = self.optimiser.state_dict()["param_groups"]
        names = [name for name, _ in self.method.named_parameters()]
        state = self.checkpoint_of({}, {"param_groups": groups, "names": names})
        write_shards(self.run_dir, state, self.tensors(), self.ranks)
        if self.ranks.leads:
            (self.run_dir / CHECKPOINT).unlink(missing_ok=True)

    def export(self) -> None:
        """By process 0: the model, and a checkpoint file of weights without moments."""
        self.reshard()
        whole = {}
        for name, value in self.method.state_dict().items():
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            if self.ranks.leads:
                whole[name] = gathered.cpu()
        if self.ranks.leads:
            self.checkpoint_of(whole, {}).save(self.run_dir / CHECKPOINT)
            write_model(self.run_dir, self.record(), whole)

    def read_checkpoint(self) -> Checkpoint:
        """What is not divided, and all of a checkpoint in one file."""
        self.source = Path(self.ranks.from_first(lambda: str(newest(self.run_dir))))
        if self.source.name == CHECKPOINT:
            return super().read_checkpoint()
        check_sums(self.source, self.ranks)
        self.sizes = sizes_in(self.source)
        return self.ranks.from_first(lambda: read_state(self.source))

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Read this process's shares, or take them of what was never divided."""
        check_same_optimiser(self.optimiser, checkpoint)
        divided = self.source.name != CHECKPOINT
        whole = {} if divided else self._by_name(checkpoint)
        sizes = self.sizes if divided else {name: value.shape for name, value in whole.items()}
        for name, parameter in self.method.named_parameters():
            first = f"{MOMENTS}/{name}/"
            self.optimiser.state[parameter] = {
                key.removeprefix(first): _blank(parameter, size)
                for key, size in sizes.items()
                if key.startswith(first)
            }
        tensors = self.tensors()
        expected = {name: tensor.shape for name, tensor in tensors.items()}
        if differing := sorted(expected.items() ^ sizes.items()):
            name = differing[0][0]
            raise CheckpointError(f"{name}: {sizes.get(name)} -> {expected.get(name)}")
        if divided:
            read_shards(self.source, tensors)
        else:
            _distribute(whole, tensors)

    def _by_name(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Weights, buffers and moments of a checkpoint in one file."""
        found = {f"{MODEL}/{name}": value for name, value in checkpoint.model.items()}
        for number, (name, _) in enumerate(self.method.named_parameters()):
            for key, value in checkpoint.optimiser["state"].get(number, {}).items():
                found[f"{MOMENTS}/{name}/{key}"] = value
        return found


def _blank(parameter: nn.Parameter, size: torch.Size) -> Tensor:
    """Where a moment goes: a number of its own, or a share like the weight's."""
    if not size and parameter.ndim:
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)


def _distribute(whole: dict[str, Tensor], tensors: dict[str, Any]) -> None:
    """Of tensors that every process has whole, its shares."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                value = whole[name].to(tensor.device)
                shares = distribute_tensor(value, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(shares.to_local())
            else:
                tensor.copy_(whole[name])
