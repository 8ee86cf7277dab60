"""Models that no memory holds: named before the system ends the process, or when it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from metamae.config.schema import Config
from metamae.errors import ConfigError

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
REMEDY = "lower encoder.width, encoder.depth, decoder.width or training.batch_size"
_REFUSALS = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "storage size calculation overflowed",
    "numel: integer multiplication overflow",
    "invalid shape dimension",
    "overflow when unpacking long",
    "overflow when computing",
    "exceeds the maximum",
    "maximum supported",
    "array is too big",
)


def is_shortage(fault: BaseException) -> bool:
    """Whether an error says, in one of torch's and NumPy's many ways, that memory does not suffice.

    Example:
        >>> from metamae.training.memory import is_shortage
        >>> (
        ...     is_shortage(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        ...     is_shortage(RuntimeError("shapes differ")),
        ... )
        (True, False)
    """
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(fault).lower()
    kinds = (RuntimeError, ValueError, OverflowError)
    return isinstance(fault, kinds) and any(refusal in text for refusal in _REFUSALS)


@contextmanager
def in_memory(config: Config, device: torch.device, shards: int = 1) -> Iterator[None]:
    """Build a model inside: one too large is a ``ConfigError``, before it is begun where it can be.

    Linux promises more memory than there is, and ends the process that uses it; so the number of
    weights is estimated first.

    Args:
        config: The configuration.
        device: Where it is trained.
        shards: Devices among which weights, gradients and moments are divided.

    Raises:
        ConfigError: naming bytes needed and bytes there.
    """
    needed, there = training_bytes(config) / shards, memory_of(device)
    if there and needed > there:
        raise ConfigError(
            f"expected a model that fits {device.type} memory, got one whose weights, gradients "
            f"and moments take {needed / 2**30:,.0f} GiB at least of {there / 2**30:,.0f}; {REMEDY}"
        )
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, OverflowError) as fault:
        if not is_shortage(fault) or isinstance(fault, ConfigError):
            raise
        reason = " ".join(str(fault).split())[:200] or "no memory left"
        raise ConfigError(
            f"expected a model that fits {device.type} memory, got one that does not ({reason}); "
            f"{REMEDY}"
        ) from fault


def training_bytes(config: Config) -> float:
    """At least what training takes: four bytes for weights, gradients and two moments each.

    Example:
        >>> from metamae import make_config
        >>> from metamae.training.memory import training_bytes
        >>> round(training_bytes(make_config("pamap2", preset="paper")) / 2**20)
        110
    """
    encoder, decoder = config.encoder, config.decoder
    # A block has four maps of its width for attention, and two to and from the hidden units.
    weights = encoder.depth * encoder.width**2 * (4 + 2 * encoder.mlp_ratio)
    if config.method == "gon":
        weights = 0.0  # no encoder
    if config.method in ("mae", "gon", "metamae"):
        weights += decoder.depth * decoder.width**2 * (4 + 2 * decoder.mlp_ratio)
    if config.method == "metamae" and config.contrast.weight > 0:
        contrast = config.contrast
        weights += encoder.width * contrast.hidden + contrast.hidden * contrast.out
    return 16.0 * weights


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory, as far as the system says; 0 where it does not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    sizes = []
    with suppress(AttributeError, OSError, ValueError):  # Windows
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # no such group, or no limit ("max")
            sizes.append(int(path.read_text()))
    return min((size for size in sizes if size > 0), default=0)
