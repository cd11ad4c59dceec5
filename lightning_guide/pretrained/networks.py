"""Networks that energies look through: of a finished run, or of timm; loaded at first use, frozen, in eval mode.

Any network the user has: its class by name, its weights in a file, the size and scale of its pictures.

So face parsing or sketch networks, which no package here provides, guide and judge (`NetworkDistance`).

A network of noisy data, asked at one noise level: a guide or a judge of data that carry that much noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.pretrained.loading import read_weights, timm_model
from lightning_guide.runs.run import raw_network
from lightning_guide.utils.images import preprocess_image
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["AtLevel", "GuideNetwork", "NamedNetwork", "RunNetwork", "TimmNetwork"]


def _single(x: Tensor) -> torch.autocast:
    """Without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


class GuideNetwork(HasRecipe, nn.Module, ABC):
    """Base of the networks. They are no submodules of this object: checkpoints and copies do not hold them."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded: list[nn.Module] = []

    @abstractmethod
    def _load(self) -> nn.Module:
        """The network, from wherever it is."""

    def network(self, device: torch.device | str = "cpu") -> Any:
        """The network on `device`.

        Raises:
            ValueError: if it cannot be loaded.
        """
        if not self._loaded:
            with torch.random.fork_rng(devices=[]):
                self._loaded.append(self._load().eval().requires_grad_(False))
        return self._loaded[0].to(device)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """What the network says about `x` (B, *), computed in float32 whatever the precision around it, as `x.dtype`.

        `others` are passed on, such as the noise level to a classifier of noisy pictures.
        """
        with _single(x):
            return self._apply_to(*[each.to(torch.float32) for each in (x, *others)]).to(x.dtype)

    def part(self, name: str, x: Tensor) -> Tensor:
        """The same for the method `name` of the network, such as `encode` of an autoencoder.

        Raises:
            ValueError: if the network has no such method.
        """
        method = getattr(self.network(x.device), name, None)
        if method is None:
            raise ValueError(f"the {type(self.network()).__name__} of {self!r} cannot {name}")
        with _single(x):
            answer: Tensor = method(x.to(torch.float32))
        return answer.to(x.dtype)

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        answer: Tensor = self.network(x.device)(x, *others)
        return answer


class RunNetwork(GuideNetwork):
    """The network that the run in folder `run` has trained, such as one of `ClassifierModule`."""

    def __init__(self, run: str, *, blocks: int | None = None) -> None:
        """`run` is the folder of the run; `blocks`: instead of the answer, the output of so many layers of `blocks`."""
        super().__init__()
        self.run, self.blocks = run, blocks

    @property
    def num_classes(self) -> int:
        """K of a classifier."""
        return int(self.network().num_classes)

    def _load(self) -> nn.Module:
        return raw_network(self.run, kind=nn.Module)

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        if self.blocks is None:
            return super()._apply_to(x, *others)
        features: Tensor = self.network(x.device).blocks[: self.blocks](x)
        return features


class TimmNetwork(GuideNetwork):
    """Logits, or a feature map, of a timm model, on pictures in [-1, 1] resized and normalized as in its training.

    One channel is repeated three times. `softplus` replaces every ReLU by Softplus(beta), which makes gradients smooth
    (EluCD, https://arxiv.org/abs/2310.11311: 3 for DDPM, 5 for EDM).
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
        """`name` as in `timm.list_models()`; `weights` a local file, None for timm's own download.

        `stage`: the feature map of that stage instead of the logits. Without `pretrained` the weights are random.
        """
        super().__init__()
        self.name, self.weights, self.pretrained, self.stage, self.softplus = name, weights, pretrained, stage, softplus

    @property
    def num_classes(self) -> int:
        """K of its head."""
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
        from timm.data import resolve_data_config

        model = self.network(x.device)
        config = resolve_data_config(model=model)
        channels, *size = config["input_size"]
        answer = model(
            preprocess_image((x + 1) / 2, mean=config["mean"], std=config["std"], size=size, channels=channels)
        )
        found: Tensor = answer if self.stage is None else answer[0]
        return found


class NamedNetwork(GuideNetwork):
    """network((picture - mean) / std) for pictures in [0, 1], resized to `size`; the first answer if there are several.

    `name` is imported: name only code that you trust. The weights are read as tensors alone.
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
        """Names a network.

        Args:
            name: `package.module.Class` of an `nn.Module`, or of a function that makes one.
            weights: file of its state dict (safetensors, or torch without pickles); None leaves them random.
            options: keyword arguments of the class.
            size: side of its square pictures, bicubic and antialiased; None: as they are.
            mean: for each channel or for all; with the defaults the network sees [-1, 1].
            std: likewise.
            output: which one of several answers.
        """
        super().__init__()
        self.name, self.weights, self.options = name, weights, dict(options or {})
        self.size, self.mean, self.std, self.output = size, list(mean), list(std), output

    def _load(self) -> nn.Module:
        module, _, attribute = self.name.rpartition(".")
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"there is no network {self.name!r}: {error}; expected package.module.Class") from None
        network = make(**self.options)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.name} makes a {type(network).__name__}; expected an nn.Module")
        if self.weights is not None:
            read_weights(network, self.weights)
        return network

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        size = None if self.size is None else (self.size, self.size)
        answer = self.network(x.device)(preprocess_image((x + 1) / 2, mean=self.mean, std=self.std, size=size))
        found: Tensor = answer if isinstance(answer, Tensor) else answer[self.output]
        return found


class AtLevel(HasRecipe, nn.Module):
    """f(x, sigma) with a fixed sigma, as a function of x."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        """`network` maps (x, sigma ()) to logits and says their number in `num_classes`, such as `RunNetwork`.

        Raises:
            ValueError: unless `sigma` is positive.
        """
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"AtLevel needs sigma > 0, got {sigma}")
        self.network, self.sigma = network, sigma

    @property
    def num_classes(self) -> int:
        """K of the network."""
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of `x` (B, *)."""
        answer: Tensor = self.network(x, x.new_tensor(self.sigma))
        return answer
