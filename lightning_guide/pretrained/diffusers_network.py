"""Denoising networks of the diffusers library as networks under a preconditioning."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import check_labels, fill_empty, pair_tokens
from lightning_guide.network import Network
from lightning_guide.networks.inputs import check_size, check_tokens
from lightning_guide.pretrained.diffusers_attention import TokenGrid, add_cores, projections
from lightning_guide.pretrained.diffusers_families import FAMILIES, find_architecture

__all__ = ["DiffusersNetwork", "check_weights", "find_class", "find_network"]


class DiffusersNetwork(Network):
    """A network of the diffusers library, `model`; its architecture is one of `diffusers_families.FAMILIES`.

    Texts are tokens (B, L, C). A pooled vector is their first row, padded with zeros to C. Samples without any token
    get the buffer `empty` (L, C): the output of the text encoder for the empty prompt, or for a negative one. Numbers
    that belong to the model, such as the sizes that SDXL is conditioned on, are `constants`; the first row can hold the
    sizes of each image instead (`add_sizes`).

    The network computes in the precision of its weights; the time stays float32.
    Submodules: ``model``, and ``tokens``, the identity through which all tokens pass.
    """

    resizable = True
    offloaded = False
    empty: Tensor

    def __init__(
        self,
        architecture: str,
        config: Mapping[str, Any],
        *,
        data_shape: Sequence[int] | None = None,
        empty_length: int = 0,
        vector: int = 0,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network with random weights; `of` takes one that exists.

        Args:
            architecture: name of the class in diffusers.
            config: its `config.json`.
            data_shape: (C, H, W) of x; default: that of the config.
            empty_length: L of `empty` and of all texts, for networks that read texts.
            vector: length of the pooled vector; 0: as the config says.
            constants: values for constants of the architecture that differ from its defaults.

        Raises:
            ValueError: naming what is not supported, does not fit, or is missing.
        """
        super().__init__()
        self.architecture = architecture = find_architecture({**config, "_class_name": architecture})
        cls = find_class(architecture)
        settings = {name: each.default for name, each in list(inspect.signature(cls.__init__).parameters.items())[1:]}
        unknown = sorted(key for key in config if key not in settings and not key.startswith("_"))
        if unknown and config.get("_class_name", architecture) == architecture:  # not of an older, larger class
            warnings.warn(
                f"the config of the {architecture} has {', '.join(unknown)}, which this version of diffusers does not "
                "know and leaves out: it may be of a newer version",
                stacklevel=2,
            )
        settings |= {key: value for key, value in config.items() if key in settings}
        size = None if data_shape is None else tuple(data_shape)[1:]
        self.family = family = FAMILIES[architecture](architecture, settings, size, **dict(constants or {}))
        self.data_shape = (family.channels, *family.size)
        if data_shape is not None and tuple(data_shape) != self.data_shape:
            expected = f"({family.channels}, height, width)"
            raise ValueError(f"data_shape of {architecture} is {tuple(data_shape)}; expected {expected}")
        check_size(architecture, *family.size, stride=family.stride)
        self.num_classes, self.token_channels, self.stride = family.num_classes, family.token_channels, family.stride
        self.variances = family.variances
        self.null_condition = bool(family.token_channels) or family.null_class is not None
        if vector not in (0, family.vector):
            raise ValueError(f"vector is {vector}; the config of {architecture} says {family.vector}")
        if (empty_length > 0) != (self.token_channels > 0):
            needed = "the number of tokens of a text" if self.token_channels else "0, since it reads no texts"
            raise ValueError(f"empty_length of {architecture} is {empty_length}; expected {needed}")
        self.tokens = nn.Identity()
        if self.token_channels:  # on the CPU even if the weights are on the meta device
            self.register_buffer("empty", torch.zeros(empty_length, self.token_channels, device="cpu"))
        self.model: nn.Module
        self._insert(cls(**settings))

    @classmethod
    def of(cls, model: Any, **options: Any) -> DiffusersNetwork:
        """Return the network with the `model` of diffusers, weights shared; `options` as of the constructor."""
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            network = cls(type(model).__name__, config, **options)
        network.set_model(model)
        return network

    def set_model(self, model: Any) -> None:
        """Exchange `model` for another one of the same architecture and config, with its weights and its device.

        Raises:
            ValueError: if a weight has another name or shape, or the copies of a shared one differ.
        """
        if type(model).__name__ != self.architecture:
            raise ValueError(f"the model is a {type(model).__name__}; expected a {self.architecture}")
        expected = self.model.state_dict()
        self.family.check(model)
        self._insert(model)
        check_weights(model, expected)

    def _insert(self, model: Any) -> None:
        """Take `model`, with the parts that methods look for, and follow it to its device."""
        self.family.adapt(model)
        self.grid: TokenGrid = add_cores(model, patch=0 if hasattr(model, "mid_block") else self.family.stride)
        self.model, self.stages = model, self.family.stages(model)
        self.parts = self.family.parts(model) | projections(model)
        device = next(model.parameters()).device
        if self.token_channels and device.type != "meta":
            self.empty = self.empty.to(device)

    def offload(self, device: torch.device | str = "cpu") -> None:
        """Keep the weights of `model` on the CPU; each layer gets its own on `device` while it runs, by accelerate.

        `to` changes the device. For sampling: weights can neither be trained nor perturbed.

        Raises:
            ValueError: if accelerate is missing.
        """
        try:
            from accelerate import cpu_offload
            from accelerate.hooks import remove_hook_from_module
        except ImportError as error:
            raise ValueError(f"offload needs accelerate ({error}); `pip install lightning-guide[pretrained]`") from None
        if self.offloaded:
            remove_hook_from_module(self.model, recurse=True)
        self.offloaded, self._execution, self._weights = True, torch.device(device), self.model.state_dict()
        cpu_offload(self.model, self._execution, bool(self.model._parameters), self._weights)

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights by name, of an offloaded model those on the CPU."""
        found: dict[str, Any] = super().state_dict(*args, prefix=prefix, **options)
        if self.offloaded:
            found.update((f"{prefix}model.{name}", weight) for name, weight in self._weights.items())
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusersNetwork:
        """Move or convert all but an offloaded model, whose layers follow to the device."""
        if not self.offloaded:
            return super()._apply(fn, recurse)  # waits for each weight that is moved
        for child in self.children():
            if child is not self.model:
                child._apply(fn)
        if (device := fn(torch.empty(0)).device) != self._execution:
            self.offload(device)
        return super()._apply(fn, recurse=False)

    @property
    def recompute(self) -> bool | None:
        """As `Network.recompute`, by the model's own switch."""
        return bool(self.model.is_gradient_checkpointing)

    @recompute.setter
    def recompute(self, recompute: bool | None) -> None:
        """Switch it."""
        (self.model.enable_gradient_checkpointing if recompute else self.model.disable_gradient_checkpointing)()  # type: ignore[operator]

    @property
    def lowest_label(self) -> int:
        """0 without a null class, else -1."""
        return 0 if self.num_classes and self.family.null_class is None else -1

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Return tokens with `empty` in rows without any, or labels with the null class for -1.

        Raises:
            ValueError: if the condition has another shape or type, a label is out of range, or there is no condition
                for a network that has no null class.
        """
        if self.token_channels:
            if condition is not None:
                condition = check_tokens(condition, self.token_channels, batch=batch, like=self.empty)
                if condition.shape[1] != len(self.empty) and not self.family.masked:
                    raise ValueError(
                        f"a text has {condition.shape[1]} tokens; {self.architecture} has no mask for them and expects "
                        f"as many as of no condition, {len(self.empty)}"
                    )
            rows = fill_empty(condition, self.empty, batch)
            return self.family.with_sizes(self.tokens(rows), rows)
        if not self.num_classes:
            return None
        null = self.family.null_class
        if condition is None:
            condition = torch.full((batch,), -1, device="cpu")
        labels = check_labels(condition, self.num_classes, batch=batch, lowest=self.lowest_label)
        return labels if null is None else torch.where(labels < 0, null, labels)

    def paired(self, embedding: Tensor, other: Tensor) -> Tensor:
        """Return the tokens of both, after the pooled vector of `embedding`, as `Network.paired`."""
        if not self.token_channels or self.family.pools_texts:
            return super().paired(embedding, other)
        first = int(self.family.vector > 0)
        return torch.cat([embedding[:, :first], pair_tokens(embedding[:, first:], other[:, first:])], dim=1)

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, *data_shape)` for the scaled input `x`, the time `c_noise` (B,) and `embedding` of `embed`.

        With `variances` it has twice the channels.

        Raises:
            ValueError: if the sides of `x` cannot be halved, or cut into patches, as the network does.
        """
        return self.evaluate(x, c_noise, embedding)

    def evaluate(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None, **more: Any) -> Tensor:
        """Return `forward` with `more` arguments of the model, such as the residuals of a ControlNet."""
        check_size(self.architecture, *x.shape[2:], stride=self.family.stride)
        self.grid.sides = tuple(x.shape[2:])
        x = x.to(next(self.model.parameters()).dtype)
        embedding = None if embedding is None else embedding.to(x.device)
        return self.family.call(self.model, x, c_noise, embedding, **more)


def find_class(architecture: str) -> Any:
    """Return a class of diffusers.

    Raises:
        ValueError: if the library is missing, or does not have it.
    """
    try:
        import diffusers  # takes seconds, and most runs do not need it

        return getattr(diffusers, architecture)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{architecture} needs the diffusers library ({error}); `pip install lightning-guide[pretrained]`"
        ) from None


def check_weights(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """Refuse a `model` whose weights have other names or shapes than those `expected`, naming the first.

    Raises:
        ValueError: naming the first weight that differs.
    """
    found = model.state_dict()
    for name in sorted(expected.keys() | found):
        here, there = (tuple(each[name].shape) if name in each else None for each in (found, expected))
        if here != there:
            kind = type(model).__name__
            raise ValueError(f"the weight {name} of the {kind} has the shape {here}; expected {there} by its config")


def find_network(module: nn.Module) -> tuple[str, DiffusersNetwork] | None:
    """Return the network of diffusers in `module` with the beginning of the names of its parts; None without one."""
    for name, each in module.named_modules():
        if isinstance(each, DiffusersNetwork):
            return f"{name}." if name else "", each
    return None
