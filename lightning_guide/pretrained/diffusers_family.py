"""Base of the architectures of the diffusers library: what is read from a config, and how the network is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_guide.utils.devices import to_device

__all__ = ["Family", "Parts", "add_sizes", "dropout_layers"]

Parts = dict[str, tuple[str, ...]]


class Family:
    """One architecture with one config.

    Attributes:
        channels: of x.
        variances: whether the output has twice these channels, the second half for variances.
        size: (height, width) of x.
        stride: height and width of x must be multiples of it.
        num_classes: labels.
        null_class: index of "no condition" in the table of labels; None if the network has none.
        token_channels: C of tokens.
        vector: length of the pooled vector in the first row of the tokens, 0 for none.
        sizes: number of sizes of an image that the end of the first row may hold (`add_sizes`), 0 for none.
        masked: whether tokens of zeros are masked, so that their number is free.
        pools_texts: whether the network makes a vector of all tokens by itself.
        constants: numbers that belong to the model, by name; None for those that follow from the size of x.
    """

    stride: int = 1
    num_classes: int = 0
    null_class: int | None = None
    token_channels: int = 0
    vector: int = 0
    sizes: int = 0
    masked: ClassVar[bool] = False
    pools_texts: bool = False

    def __init__(self, name: str, config: Mapping[str, Any], size: Sequence[int] | None, **constants: Any) -> None:
        """Read a complete `config` of the architecture `name`; `size` (height, width) replaces that of the config.

        Raises:
            ValueError: naming the setting that is not supported, or the constant that there is not.
        """
        self.name, self.config = name, config
        self.channels, out = self._channels(config["in_channels"], config.get("out_channels"))
        if out not in (self.channels, 2 * self.channels):
            self.refuse(f"in_channels={config['in_channels']} and out_channels={config['out_channels']}", "equal ones")
        self.variances = out == 2 * self.channels
        size = size or config.get("sample_size") or self._default_size()
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._read(config)
        self.constants = self._defaults(constants)
        for constant in constants:
            if constant not in self.constants:
                known = ", ".join(self.constants) or "none"
                raise ValueError(f"{name} with this config has no constant {constant}; its constants: {known}")
        self.constants |= constants
        if self.vector > self.token_channels:
            self.refuse(f"a pooled vector of {self.vector} numbers", f"at most {self.token_channels}, those of a token")
        self._copies: dict[tuple[str, tuple[int, ...], torch.device], Tensor] = {}

    def _channels(self, inside: int, outside: int | None) -> tuple[int, int]:
        """Return the channels of x and of the output."""
        return inside, outside or inside

    def _default_size(self) -> Sequence[int]:
        raise ValueError(f"the config of {self.name} has no sample_size; expected data_shape=(C, H, W)")

    def _read(self, config: Mapping[str, Any]) -> None:
        """Set the attributes of the class, and refuse what is not supported."""

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults of the constants."""
        return {}

    def refuse(self, found: str, expected: str) -> None:
        """Raise the error for a setting that is not supported."""
        raise ValueError(f"{self.name} with {found} is not supported; expected {expected}")

    def require(self, **values: Any) -> None:
        """Refuse settings with other values than `values` (a value or a tuple)."""
        for key, value in values.items():
            allowed = value if isinstance(value, tuple) else (value,)
            if self.config.get(key) not in allowed:
                self.refuse(f"{key}={self.config[key]!r}", " or ".join(map(repr, allowed)))

    def _of_size(self, name: str, height: int, width: int) -> Sequence[float]:
        """Return the numbers of the constant `name` that follow from x (C, height, width); by default none do."""
        return ()

    def constant(self, name: str, like: Tensor) -> Tensor:
        """Return the numbers of a constant for each sample of `like`, float32 (B, *), copied to its device once."""
        key = (name, tuple(like.shape[2:]), like.device)
        if key not in self._copies:
            numbers = self.constants[name]
            numbers = self._of_size(name, *key[1]) if numbers is None else numbers
            self._copies[key] = to_device(torch.tensor(numbers, dtype=torch.float32), like.device)
        return self._copies[key].expand(len(like), *self._copies[key].shape)

    def with_sizes(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return `tokens` with the sizes of `condition`, both (B, L, C), which no perturbation of tokens may change."""
        if not self.sizes:
            return tokens
        first = torch.cat([tokens[:, :1, : -self.sizes], condition[:, :1, -self.sizes :]], dim=2)
        return torch.cat([first, tokens[:, 1:]], dim=1)

    def split(self, embedding: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled vector (B, vector) and the tokens (B, L, C) of `embedding`, in the dtype of `x`."""
        embedding = embedding.to(x.dtype)
        return embedding[:, 0, : self.vector], embedding[:, 1 if self.vector else 0 :]

    def check(self, model: Any) -> None:
        """Refuse weights that the network cannot use; by default none."""

    def adapt(self, model: Any) -> None:
        """Change a model in place so that methods find its parts; by default not at all."""

    def published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a model after `adapt` under the names that the library gives them."""
        return dict(state)

    def parts(self, model: Any) -> Parts:
        """Return the name patterns of `Network.parts` in `model`; by default none."""
        return {}

    def stages(self, model: Any) -> Sequence[str]:
        """Return the name patterns of `Network.stages` in `model`; by default none."""
        return ()

    def arguments(self, x: Tensor, embedding: Tensor | None) -> dict[str, Any]:
        """Return the arguments of the model besides x and the time; by default none."""
        return {}

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, **more: Any) -> Tensor:
        """Return the output (B, C, H, W), or with twice the channels, for `x` in the dtype of the model."""
        output: Tensor = model(x, timestep=t, **self.arguments(x, embedding), **more).sample
        return output


def add_sizes(tokens: Tensor, sizes: Tensor) -> Tensor:
    """Return `tokens` (L, C) with the six `sizes` of an image at the end of the first row, the padded pooled vector.

    They are height and width of the original, top and left of the crop, height and width of the crop: SDXL's
    conditions on sizes, https://arxiv.org/abs/2307.01952, section 2.2. Zeros there mean none.
    """
    tokens = tokens.clone()
    tokens[0, -len(sizes) :] = sizes.to(tokens)
    return tokens


def dropout_layers(model: nn.Module, *, inside: str) -> Parts:
    """Return the dropout modules of `model` with `inside` in their names, if there are any."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and inside in name]
    return {"dropout": tuple(f"model.{name}" for name in names)} if names else {}
