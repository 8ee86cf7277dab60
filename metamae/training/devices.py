"""The device that a command runs on, and its precision."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext

import torch

from metamae.arguments import check_text
from metamae.config.schema import Config
from metamae.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is the first CUDA device where there is one.

    Raises:
        ConfigError: a name that is no device, or a device that is not there.

    Example:
        >>> from metamae.training.devices import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    check_text(name, "a device")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise ConfigError(f"expected a device such as cpu or cuda, got {name!r}") from fault
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"expected a device such as cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device, found none; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"expected one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has products of bfloat16; without them a CPU takes ten times as long.

    Of processors other than x86 nothing is known, and it is taken for granted.

    Example:
        >>> import torch
        >>> from metamae.training.devices import multiplies_bfloat16
        >>> isinstance(multiplies_bfloat16(torch.device("cpu")), bool)
        True
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """The mixed-precision context that a configuration asks for."""
    if config.training.autocast == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
