"""Networks that energies look through: of a finished run, or of timm; loaded at first use, frozen, in eval mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.foreign.library_models import timm_model
from lightning_guide.raw_network import raw_network
from lightning_guide.recipe import Recorded
from lightning_guide.shown import shown

__all__ = ["GuideNetwork", "RunNetwork", "TimmNetwork"]


def _single(x: Tensor) -> torch.autocast:
    """Without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


class GuideNetwork(Recorded, nn.Module, ABC):
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
    """Logits, or a feature map, of a timm model, on pictures in [-1, 1] resized and normalised as in its training.

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
        answer = model(shown((x + 1) / 2, mean=config["mean"], std=config["std"], size=size, channels=channels))
        found: Tensor = answer if self.stage is None else answer[0]
        return found
