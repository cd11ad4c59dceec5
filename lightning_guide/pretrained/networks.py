"""Guide networks of energies: of a finished run, of timm, or from a class path and a weight file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import named_network, timm_input, timm_model
from lightning_guide.runs.models import raw_network
from lightning_guide.utils.images import preprocess_image
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["AtLevel", "GuideNetwork", "NamedNetwork", "RunNetwork", "TimmNetwork"]


def _no_autocast(x: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


class GuideNetwork(HasRecipe, FrozenNetwork, nn.Module):
    """Base of guide networks of energies, a `FrozenNetwork` in float32 with gradients with respect to its input."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the output of the network for `x` (B, *), computed in float32 without autocast, as `x.dtype`.

        `others` are further arguments, such as the noise level for a classifier of noisy images.
        """
        with _no_autocast(x):
            return self._apply_to(*[each.to(torch.float32) for each in (x, *others)]).to(x.dtype)

    def part(self, name: str, x: Tensor) -> Tensor:
        """Return the output of the method `name` of the network, such as `encode` of an autoencoder.

        Raises:
            ValueError: if the network has no such method.
        """
        method = getattr(self.network(x), name, None)
        if method is None:
            raise ValueError(f"the {type(self.network()).__name__} of {self!r} has no method {name!r}")
        with _no_autocast(x):
            output: Tensor = method(x.to(torch.float32))
        return output.to(x.dtype)

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        output: Tensor = self.network(x)(x, *others)
        return output


class RunNetwork(GuideNetwork):
    """Network trained by a run, such as one of `ClassifierModule`."""

    def __init__(self, run: str, *, blocks: int | None = None) -> None:
        """Take the run folder; with `blocks`, output the features of the first `blocks` layers of `network.blocks`."""
        super().__init__()
        self.run, self.blocks = run, blocks

    @property
    def num_classes(self) -> int:
        """Number of classes K of a classifier."""
        return int(self.network().num_classes)

    def _load(self) -> nn.Module:
        return raw_network(self.run, kind=nn.Module)

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        if self.blocks is None:
            return super()._apply_to(x, *others)
        features: Tensor = self.network(x).blocks[: self.blocks](x)
        return features


class TimmNetwork(GuideNetwork):
    """Logits or a feature map of a timm model, of images in [-1, 1] resized and normalized as in its training.

    One channel is repeated three times. `softplus` replaces every ReLU by Softplus(beta) for smooth gradients (EluCD,
    https://arxiv.org/abs/2310.11311: 3 for DDPM, 5 for EDM).
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str | None = None,
        pretrained: bool = True,
        stage: int | None = None,
        softplus: float | None = None,
    ) -> None:
        """Choose the model.

        Args:
            name: as in `timm.list_models()`.
            weights: a local file; None for timm's own download.
            pretrained: False for random weights.
            stage: return the feature map of this stage instead of the logits.
            softplus: beta of Softplus; None keeps every ReLU.
        """
        super().__init__()
        self.name, self.weights, self.pretrained, self.stage, self.softplus = name, weights, pretrained, stage, softplus

    @property
    def num_classes(self) -> int:
        """Number of classes K of the head."""
        return int(self.network().num_classes)

    def _load(self) -> nn.Module:
        options: dict[str, Any] = {} if self.stage is None else {"features_only": True, "out_indices": [self.stage]}
        model: nn.Module = timm_model(self.name, weights=self.weights, pretrained=self.pretrained, **options)
        if self.softplus is not None:
            for name, part in list(model.named_modules()):
                if isinstance(part, nn.ReLU):
                    model.set_submodule(name, nn.Softplus(beta=self.softplus))
        return model

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        model = self.network(x)
        output = model(preprocess_image((x + 1) / 2, **timm_input(model)))
        result: Tensor = output if self.stage is None else output[0]
        return result


class NamedNetwork(GuideNetwork):
    """Guide network from a class path and a weight file: network((image - mean) / std) of images in [0, 1].

    Face parsing or sketch networks, which no dependency provides, serve `NetworkDistance` this way. `name` is
    imported, so use only trusted code. The weights are read as tensors only.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        size: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        output: int = 0,
    ) -> None:
        """Choose the network.

        Args:
            name: `package.module.Class` of an `nn.Module`, or of a function that returns one.
            weights: file of its state dict (safetensors, or torch without pickles); None leaves them random.
            options: keyword arguments of the class.
            size: side of the square images, resized bicubic and antialiased; None: no resizing.
            mean: for each channel or for all; with the defaults the input lies in [-1, 1].
            std: likewise.
            output: index of the output, if there are several.
        """
        super().__init__()
        self.name, self.weights, self.options = name, weights, dict(options or {})
        self.size, self.mean, self.std, self.output = size, list(mean), list(std), output

    def _load(self) -> nn.Module:
        return named_network(self.name, self.weights, self.options)

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        size = None if self.size is None else (self.size, self.size)
        output = self.network(x)(preprocess_image((x + 1) / 2, mean=self.mean, std=self.std, size=size))
        result: Tensor = output if isinstance(output, Tensor) else output[self.output]
        return result


class AtLevel(HasRecipe, nn.Module):
    """Network f(x, sigma) of noisy data with a fixed sigma, as a function of x."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        """Take a `network` from (x, sigma ()) to logits with `num_classes`, such as `RunNetwork`.

        Raises:
            ValueError: unless `sigma` is positive.
        """
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"AtLevel needs sigma > 0, got {sigma}")
        self.network, self.sigma = network, sigma

    @property
    def num_classes(self) -> int:
        """Number of classes K of the network."""
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of `x` (B, *)."""
        logits: Tensor = self.network(x, x.new_full((), self.sigma))
        return logits
