"""Training of classifiers: on clean images (for metrics), on noisy images (for guidance), or against L2 attacks."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.denoiser import expand
from lightning_guide.modules.supervised import SupervisedModule
from lightning_guide.networks.classifiers import Classifier, NoisyClassifier
from lightning_guide.noise import LogUniform, NoiseDistribution

__all__ = ["ClassifierModule", "NoisyClassifierModule", "RobustClassifierModule", "adversarial_images", "random_shift"]


def random_shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each image of `x` (B, C, H, W) by up to `pixels` in each direction; border pixels fill the gap."""
    batch, _, height, width = x.shape
    offsets = torch.randint(2 * pixels + 1, (2, batch), generator=generator, device=x.device)
    rows = (offsets[0, :, None] + torch.arange(height, device=x.device) - pixels).clamp(0, height - 1)  # (B, H)
    columns = (offsets[1, :, None] + torch.arange(width, device=x.device) - pixels).clamp(0, width - 1)  # (B, W)
    item = torch.arange(batch, device=x.device)[:, None, None]
    return x[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


class ClassifierModule(SupervisedModule):
    """Cross-entropy training of a classifier of clean images, whose weights `ClassifierFeatures` loads."""

    measured = ("loss", "accuracy")

    def __init__(
        self,
        network: Classifier,
        *,
        optimizer: OptimizerCallable | None = None,
        label_smoothing: float = 0.0,
        augment: int = 0,
        seed: int = 0,
    ) -> None:
        """Configure training.

        Args:
            network: the classifier.
            optimizer: default AdamW with learning rate 0.002.
            label_smoothing: share of each target that is spread over all classes.
            augment: largest random shift of training images in pixels (flips are applied by the datamodule).
            seed: seed of the shifts.

        Raises:
            ValueError: if `label_smoothing` is not in [0, 1) or `augment` is negative.
        """
        super().__init__(network, optimizer=optimizer, seed=seed)
        if not 0 <= label_smoothing < 1 or augment < 0:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= label_smoothing < 1 and augment >= 0, got {label_smoothing} and "
                f"{augment}"
            )
        self.label_smoothing, self.augment = label_smoothing, augment

    def setup(self, stage: str) -> None:
        """Check that data and network fit.

        Raises:
            ValueError: if they do not, or `trainer.max_steps` is not set.
        """
        super().setup(stage)
        classes = self._data.num_classes
        if classes != self.network.num_classes:
            raise ValueError(f"the data has {classes} classes, the classifier {self.network.num_classes}")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean cross-entropy () of one batch."""
        x, labels = self._labeled(batch)
        x = random_shift(x, self.augment, generator) if self.augment else x
        return F.cross_entropy(self.logits(x, generator), labels, label_smoothing=self.label_smoothing)

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the logits (B, K) of images `x` (B, C, H, W); subclasses draw noise from `generator`."""
        logits: Tensor = self.network(x)
        return logits

    def measures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return cross-entropy and accuracy, each (B,)."""
        x, labels = self._labeled(batch)
        logits = self.logits(x, generator)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(1) == labels).to(logits.dtype),
        }

    def _labeled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and labels, or raise ValueError if the data has no labels."""
        if batch.condition is None:
            raise ValueError("a classifier learns from labels, but this data has none (num_classes of the datamodule)")
        return batch.x, batch.condition


class NoisyClassifierModule(ClassifierModule):
    """Training of a classifier of x + sigma n conditioned on sigma; held-out values are averages over sigma."""

    def __init__(self, network: NoisyClassifier, *, noise: NoiseDistribution | None = None, **options: Any) -> None:
        """Configure training.

        Args:
            network: the classifier.
            noise: distribution of the noise level; default: ln sigma uniform between ln 0.002 and ln 80.
            options: as for `ClassifierModule`.
        """
        super().__init__(network, **options)
        self.noise = noise or LogUniform()

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the logits (B, K) of `x` (B, C, H, W) with fresh noise."""
        sigma = self.noise.sample(len(x), generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        logits: Tensor = self.network(x + expand(sigma, x) * noise, sigma)
        return logits


def adversarial_images(network: nn.Module, x: Tensor, labels: Tensor, *, radius: float = 2.0, times: int = 3) -> Tensor:
    """Return x + delta with |delta| <= radius: projected ascent of the cross-entropy in `times` steps of radius / 2.

    Madry et al. 2018, https://arxiv.org/abs/1706.06083, in the L2 norm, from delta = 0; `x` (B, *), `labels` (B,).
    """
    delta = torch.zeros_like(x)
    for _ in range(times):
        with torch.enable_grad():
            delta.requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(network(x + delta), labels), delta)
        delta = delta.detach() + radius / 2 * F.normalize(g.flatten(1), dim=1).reshape(x.shape)
        delta = delta * (radius / delta.flatten(1).norm(dim=1).clamp(min=radius)).reshape(-1, *[1] * (x.ndim - 1))
    return x + delta


class RobustClassifierModule(ClassifierModule):
    """Adversarial training of a classifier on attacked images; held-out values are those of clean images."""

    def __init__(self, network: Classifier, *, radius: float = 2.0, attacks: int = 3, **options: Any) -> None:
        """Configure training.

        Args:
            network: the classifier.
            radius: radius of the L2 ball around each image, in units of encoded images.
            attacks: steps of the attack; each costs a forward and a backward pass.
            options: as for `ClassifierModule`.

        Raises:
            ValueError: unless `radius` > 0 and `attacks` >= 1, or as `ClassifierModule`.
        """
        super().__init__(network, **options)
        if not radius > 0 or attacks < 1:
            raise ValueError(f"RobustClassifierModule needs radius > 0 and attacks >= 1, got {radius} and {attacks}")
        self.radius, self.attacks = radius, attacks

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean cross-entropy () of the attacked batch."""
        x, labels = self._labeled(batch)
        x = adversarial_images(self.network, x, labels, radius=self.radius, times=self.attacks)
        return super().loss(batch._replace(x=x), generator)
