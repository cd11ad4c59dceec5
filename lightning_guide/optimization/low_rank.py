"""Low-rank adaptation (LoRA), Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

The weights W of a frozen network become W + c U V with trained U (out, rank), initialized to zero, and V (rank, in),
initialized at random, so that the adapted network initially equals the network. The sum is computed in place of the
weight itself, so every kind of layer with a weight can be adapted, also one that normalizes it; plain linear layers and
convolutions compute c U (V x) beside W x instead, which needs no gradient of the size of W.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Models
from lightning_guide.guidance.base import Reference
from lightning_guide.network import Network
from lightning_guide.origin import Origin, fingerprint, same_weights
from lightning_guide.pretrained.source import load
from lightning_guide.seeds import mix
from lightning_guide.utils.modules import matching_names, names_of_layers, shallow_clone

__all__ = ["LowRank"]


class _LowRankSum(nn.Module):
    """W -> W + factor (U V) reshaped, for a `weight` of shape (out, *); U and V are float32."""

    def __init__(self, weight: Tensor, rank: int, factor: float, seed: int) -> None:
        super().__init__()
        size = weight[0].numel()
        generator = torch.Generator().manual_seed(seed)
        self.factor = factor
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.down = nn.Parameter(torch.randn(rank, size, generator=generator) / size**0.5)
        self.to(weight.device)

    def forward(self, weight: Tensor) -> Tensor:
        added = self.factor * (self.up @ self.down).reshape(weight.shape)
        return (weight.to(torch.promote_types(weight.dtype, added.dtype)) + added).to(weight.dtype)


def _linear(layer: Any, x: Tensor) -> Tensor:
    """W x + b + c U (V x) of an adapted linear layer."""
    sums = layer.parametrizations.weight
    y = F.linear(x, sums.original, layer.bias)
    for each in sums:
        y = y + each.factor * F.linear(F.linear(x, each.down.to(x.dtype)), each.up.to(x.dtype))
    return y


def _convolution(layer: Any, x: Tensor) -> Tensor:
    """W * x + b + c U (V * x) of an adapted convolution; V is one of the same kernel."""
    sums = layer.parametrizations.weight
    y = layer._conv_forward(x, sums.original, layer.bias)
    for each in sums:
        kernel = each.down.reshape(-1, *sums.original.shape[1:]).to(x.dtype)
        y = y + each.factor * F.conv2d(layer._conv_forward(x, kernel, None), each.up[:, :, None, None].to(x.dtype))
    return y


class LowRank(DerivedDenoiser):
    """Low-rank adaptation (LoRA): `denoiser` with frozen weights and trained low-rank additions to them.

    Snapshots and checkpoints of a model that was adapted as it was loaded (`Pretrained`, a run, a `Snapshot`) hold the
    additions alone; the model is loaded again by its `origin`, and recognized by its fingerprint.
    """

    base: Tensor

    def __init__(
        self,
        denoiser: Denoiser | Origin,
        *,
        rank: int = 4,
        scale: float = 1.0,
        alpha: float | None = None,
        layers: Sequence[str] | str | None = "default",
        seed: int = 0,
    ) -> None:
        """Adapt `denoiser`, whose weights are shared and frozen; a reference is first replaced by its model, `resolve`.

        Args:
            denoiser: the model, or where it is loaded.
            rank: r; a layer with fewer than r rows or columns is not adapted.
            scale: factor of U V.
            alpha: the factor is scale alpha / r, as other tools write it; None: scale.
            layers: names of layers, or patterns with ``*``; "default": the projections of attention in networks of
                diffusers, all in others; None: all with a weight of two axes or more.
            seed: of V.

        Raises:
            ValueError: if `rank` is below 1, a name has no match, no layer can be adapted, or the model cannot be
                loaded.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"LowRank needs rank >= 1, got {rank}")
        self.rank, self.scale, self.alpha, self.layers, self.seed = rank, scale, alpha, layers, seed
        if isinstance(denoiser, Reference):
            self.denoiser: Denoiser = denoiser
            return
        model = _loaded(denoiser) if isinstance(denoiser, Origin) else denoiser
        self.denoiser = shallow_clone(model.requires_grad_(False))
        self.adapted = [name for name, layer in self._chosen_layers() if self._adapt(name, layer)]
        if not self.adapted:
            raise ValueError(f"LowRank finds no layer of rank {rank} or more to adapt in a {type(model).__name__}")
        if model.origin is not None and model.origin.holds(model):
            self.denoiser.origin = model.origin
            self._arguments = self._arguments | {"denoiser": model.origin}
            self.register_buffer("base", fingerprint(model))

    @property
    def factor(self) -> float:
        """Factor c of U V."""
        return self.scale * (1.0 if self.alpha is None else self.alpha / self.rank)

    def _chosen_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the chosen layers by name."""
        modules = dict(self.denoiser.named_modules())
        layers = self.layers
        if layers == "default":
            layers = list(_projections(self.denoiser)) or None
        if layers is None:
            return [(name, module) for name, module in modules.items() if not isinstance(module, _LowRankSum)]
        patterns = [layers] if isinstance(layers, str) else layers
        return [(name, modules[name]) for name in names_of_layers(self.denoiser, patterns, "LowRank")]

    def _adapt(self, name: str, layer: nn.Module) -> bool:
        """Parametrize the weight of one layer, if it is large enough; return whether it was."""
        stacked = _sums(layer)
        weight = stacked.original if stacked is not None else layer._parameters.get("weight")
        if weight is None or weight.ndim < 2 or min(len(weight), weight[0].numel()) < self.rank:
            return False
        kind = type(layer)
        added = _LowRankSum(weight, self.rank, self.factor, mix(self.seed, name))
        parametrize.register_parametrization(layer, "weight", added)
        if kind is nn.Linear:
            type(layer).forward = _linear  # of a class that belongs to this layer and its copies alone
        elif kind is nn.Conv2d and layer.groups == 1:
            type(layer).forward = _convolution
        return True

    def additions(self) -> Iterator[tuple[str, _LowRankSum]]:
        """Yield the names of the adapted layers in `denoiser` with their additions."""
        for name in self.adapted:
            sums = _sums(self.denoiser.get_submodule(name))
            assert sums is not None
            yield name, sums[-1]

    @property
    def underlying(self) -> Denoiser:
        """The model."""
        return self.denoiser

    @property
    def unadapted(self) -> Denoiser | None:
        """The model without the additions, whose weights it shares; None for a reference."""
        if isinstance(self.denoiser, Reference):
            return None
        tree = shallow_clone(self.denoiser)
        for name in self.adapted:
            layer = tree.get_submodule(name)
            sums: Any = _sums(layer)
            if len(sums) > 1:
                del sums[-1]
            else:
                layer.__class__ = type(layer).__bases__[0]
                del layer.parametrizations
                layer.register_parameter("weight", sums.original)
        return tree

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D (B, *data_shape)."""
        return self.denoiser(x, sigma, condition)

    def resolve(self, models: Models) -> Denoiser:
        """Return itself or, for a reference, the adaptation of its model with freshly initialized U and V."""
        if not isinstance(self.denoiser, Reference):
            return self
        options = {key: value for key, value in self._arguments.items() if key != "denoiser"}
        model = self.denoiser.resolve(models)
        trains = any(parameter.requires_grad for parameter in model.parameters())
        return LowRank(copy.deepcopy(model) if trains else model, **options)

    # State: the additions alone, if the model can be loaded again

    def _own(self) -> tuple[str, ...]:
        """Return the beginnings of the names of the additions."""
        sums = ((name, _sums(self.denoiser.get_submodule(name))) for name in self.adapted)
        return tuple(f"denoiser.{name}.parametrizations.weight.{len(each or ()) - 1}." for name, each in sums)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state, without the model if it has an origin."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if "base" in self._buffers:
            prefix = kwargs.get("prefix", "")
            kept = tuple(f"{prefix}{name}" for name in (*self._own(), "base"))
            for name in [name for name in state if name.startswith(prefix) and not name.startswith(kept)]:
                del state[name]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Check that the stored additions belong to this model, and keep its weights.

        Raises:
            ValueError: if they belong to another.
        """
        if "base" in self._buffers:
            stored = state_dict.get(f"{prefix}base")
            if stored is not None and not same_weights(stored, self.base):
                raise ValueError(
                    f"the low-rank additions were trained on another model than {self.denoiser.origin}: its weights "
                    "differ from those that they belong to; expected the same weights there"
                )
            model = nn.Module.state_dict(self.denoiser, prefix=f"{prefix}denoiser.", keep_vars=True)
            own = tuple(f"{prefix}{name}" for name in self._own())
            state_dict.update({name: each for name, each in model.items() if not name.startswith(own)})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _sums(layer: Any) -> Any:
    """Return the additions to the weight of a layer; None if it has none."""
    sums = layer.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else None
    return sums if sums is not None and isinstance(sums[-1], _LowRankSum) else None


def _projections(denoiser: Denoiser) -> Iterator[str]:
    """Yield the names of the layers that the networks in `denoiser` name as those to be adapted."""
    for name, module in denoiser.named_modules():
        if isinstance(module, Network):
            for pattern in module.parts.get("projection", ()):
                yield from matching_names(denoiser, f"{name}.{pattern}", "LowRank")


def _loaded(origin: Origin) -> Denoiser:
    """Return the model at `origin`.

    Raises:
        ValueError: saying that it is the one that is adapted.
    """
    try:
        return load(origin.source, **origin.options)
    except ValueError as error:
        raise ValueError(f"the model under the low-rank additions cannot be loaded again: {error}") from None
