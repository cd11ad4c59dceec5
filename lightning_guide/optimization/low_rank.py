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
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Models
from lightning_guide.guidance.base import Reference
from lightning_guide.network import Network
from lightning_guide.optimization.low_rank_layers import LowRankSum, adapt, remove_last, sums_of
from lightning_guide.origin import Origin, fingerprint, same_weights
from lightning_guide.pretrained.diffusers_network import find_network
from lightning_guide.pretrained.lora import Addition, find_lora, read_lora
from lightning_guide.pretrained.lora_files import pipeline_of
from lightning_guide.pretrained.source import load
from lightning_guide.seeds import check_seed, mix
from lightning_guide.utils.modules import matching_names, names_of_layers, shallow_clone

__all__ = ["LowRank"]


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
        lora: str | None = None,
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
            lora: a LoRA file from which training starts, of rank r at most, as `lora` of `Pretrained`.
            seed: of V.

        Raises:
            ValueError: if `rank` is below 1, a name has no match, no layer can be adapted, the model cannot be loaded,
                or `lora` does not fit it.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"LowRank needs rank >= 1, got {rank}")
        self.rank, self.scale, self.alpha, self.layers, self.seed = rank, scale, alpha, layers, check_seed(seed)
        self.adapted: list[str] = []
        if isinstance(denoiser, Reference):
            self.denoiser: Denoiser = denoiser
            return
        model = _loaded(denoiser) if isinstance(denoiser, Origin) else denoiser
        self.denoiser = shallow_clone(model.requires_grad_(False))
        self.adapted = [
            name for name, layer in self._chosen_layers() if adapt(layer, self.rank, self.factor, mix(seed, name))
        ]
        if not self.adapted:
            raise ValueError(f"LowRank finds no layer of rank {rank} or more to adapt in a {type(model).__name__}")
        if lora is not None:
            self._start_from(lora)
            self._arguments = self._arguments | {"lora": None}  # what is stored needs the file no more
        if model.origin is not None and model.origin.holds(model):
            self.denoiser.origin = model.origin
            self._arguments = self._arguments | {"denoiser": model.origin}
            self.register_buffer("base", fingerprint(model))

    def requires_grad_(self, requires_grad: bool = True) -> LowRank:
        """Set whether the additions are trained; the model under them never is."""
        for _, added in self.additions():
            added.requires_grad_(requires_grad)
        return self

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
            return [(name, module) for name, module in modules.items() if not isinstance(module, LowRankSum)]
        patterns = [layers] if isinstance(layers, str) else layers
        return [(name, modules[name]) for name in names_of_layers(self.denoiser, patterns, "LowRank")]

    def _start_from(self, place: str) -> None:
        """Initialize U and V from a file."""
        found = find_network(self.denoiser)
        if found is None:
            raise ValueError(f"lora={place} is for a network of diffusers, which this model does not have")
        prefix, network = found
        file, sums = find_lora(place), dict(self.additions())
        for name, addition in read_lora(file, network.model, pipeline=pipeline_of(network)).items():
            own = sums.get(f"{prefix}model.{name}")
            if own is None:
                raise ValueError(f"{file} changes {name}, which LowRank does not adapt; expected layers with it")
            if len(addition.down) > self.rank:
                raise ValueError(f"{file} changes {name} with rank {len(addition.down)}; LowRank has rank {self.rank}")
            own.start(addition)

    def additions(self) -> Iterator[tuple[str, LowRankSum]]:
        """Yield the names of the adapted layers in `denoiser` with their additions."""
        for name in self.adapted:
            sums = sums_of(self.denoiser.get_submodule(name))
            assert sums is not None
            yield name, sums[-1]

    def merged_additions(self) -> dict[str, Addition]:
        """Return the additions to each weight, all of one layer as one, by the names in `denoiser`.

        Additions to a model that is adapted itself are concatenated: (U, U') (V, V') is their sum.
        """
        merged: dict[str, Addition] = {}
        for name, layer in self.denoiser.named_modules():
            if (sums := sums_of(layer)) is None:
                continue
            if len(sums) == 1:
                up, down, factor = sums[0].up, sums[0].down, sums[0].factor
            else:
                up, factor = torch.cat([each.factor * each.up for each in sums], 1), 1.0
                down = torch.cat([each.down for each in sums])
            merged[name] = Addition(up.detach(), down.detach().reshape(len(down), *sums.original.shape[1:]), factor)
        return merged

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
            remove_last(tree.get_submodule(name))
        return tree

    @property
    def merged(self) -> Denoiser:
        """A copy of the model with the additions added to its weights; itself for a reference."""
        if isinstance(self.denoiser, Reference):
            return self
        tree = copy.deepcopy(self.denoiser)
        tree.origin = None
        for name in self.adapted:
            layer = tree.get_submodule(name)
            sums = sums_of(layer)
            sums.original.data = sums[-1](sums.original).detach()
            remove_last(layer)
        return tree.merged

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
        sums = ((name, sums_of(self.denoiser.get_submodule(name))) for name in self.adapted)
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
