"""A plain module from raw batches to features, with the scaling inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from metamae.data.description import Description
from metamae.errors import InputError
from metamae.inputs import Batch, Tokens
from metamae.methods.method import Method

Output: TypeAlias = Literal["features", "tokens"]


class EncoderModule(nn.Module):
    """Raw, unscaled tensors to features: what goes into another network, or is exported.

    Scaling and encoder are inside, the decoder is not. It is in eval mode as it comes; its weights
    are those of the encoder, not copies, and can be trained on.

    Args:
        method: The trained method.
        description: Its inputs and their scaling.

    Shape:
        ``forward`` takes one tensor for each input, in their order, or a mapping of all by name,
        and gives ``(B, D)``; ``token_features`` gives ``(B, L, D)``.

    Raises:
        InputError: tensors that do not fit the inputs.

    Example:
        >>> import torch
        >>> from metamae import build_method, load_dataset, make_config
        >>> from metamae.artefact import EncoderModule
        >>> from metamae.data.description import Description
        >>> data = load_dataset("sensors")
        >>> method = build_method(make_config("sensors"), data.inputs)
        >>> EncoderModule(method, Description.of(data))(torch.zeros(2, 6, 128)).shape
        torch.Size([2, 128])
    """

    def __init__(self, method: Method[Any], description: Description) -> None:
        """See the class."""
        super().__init__()
        self.inputs = description.inputs
        # A method may compute features in a way of its own; else nothing but the encoder is kept.
        own = type(method).features is not Method.features
        self.network = method if own else method.network.bare()
        self.encoder = method.network.bare()
        self.needs_gradients = method.needs_gradients
        for number, spec in enumerate(self.inputs):
            scaling = description.scaling.get(spec.name)
            for name in ("mean", "scale"):
                value = None if scaling is None else np.asarray(getattr(scaling, name), np.float32)
                tensor = None if value is None else torch.from_numpy(value.copy())
                self.register_buffer(f"{name}_{number}", tensor)
        self.eval()

    def forward(self, *inputs: Tensor | Batch) -> Tensor:
        """Features ``(B, D)``."""
        features: Tensor = self.network.features(self.scaled(*inputs))
        return features

    def token_features(self, *inputs: Tensor | Batch) -> Tensor:
        """Features of every token, ``(B, L, D)``; of several inputs one after the other."""
        return self.encoder.token_features(self.scaled(*inputs))

    def scaled(self, *inputs: Tensor | Batch) -> dict[str, Tensor]:
        """The batch that the encoder reads."""
        batch = self._named(inputs)
        return {spec.name: self._scale(n, batch[spec.name]) for n, spec in enumerate(self.inputs)}

    def _named(self, inputs: tuple[Any, ...]) -> Batch:
        names = [spec.name for spec in self.inputs]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            batch = inputs[0]
            if sorted(batch) != sorted(names):
                raise InputError(f"expected a batch with inputs {names}, got {list(batch)}")
        elif len(inputs) == len(names):
            batch = dict(zip(names, inputs, strict=True))
        else:
            raise InputError(f"expected one tensor for each of {names}, got {len(inputs)}")
        for name, x in batch.items():
            if not isinstance(x, Tensor):
                raise InputError(f"expected input {name!r} as a tensor, got {type(x).__name__}")
        return batch

    def _scale(self, number: int, x: Tensor) -> Tensor:
        spec = self.inputs[number]
        if isinstance(spec, Tokens):
            return x
        mean, scale = (getattr(self, f"{name}_{number}") for name in ("mean", "scale"))
        x = x.to(next(self.encoder.parameters()).dtype)
        if mean is None:
            return x
        spec.check(x)
        scaled: Tensor = (x - mean) / scale
        return scaled
