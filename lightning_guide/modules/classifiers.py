"""Training of the small classifier whose features and answers judge generated pictures.

Training of a classifier of noisy pictures, for classifier guidance.

Training of a classifier against L2 attacks: the robust guide, and the judge, of the experiments on alignment.
"""

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
    """Pictures `x` (B, C, H, W), each moved by up to `pixels` in each direction; the border pixels fill the gap."""
    batch, _, height, width = x.shape
    offsets = torch.randint(2 * pixels + 1, (2, batch), generator=generator, device=x.device)
    rows = (offsets[0, :, None] + torch.arange(height, device=x.device) - pixels).clamp(0, height - 1)  # (B, H)
    columns = (offsets[1, :, None] + torch.arange(width, device=x.device) - pixels).clamp(0, width - 1)  # (B, W)
    item = torch.arange(batch, device=x.device)[:, None, None]
    return x[item, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


class ClassifierModule(SupervisedModule):
    """Cross-entropy training; everything else is that of `SupervisedModule`. `ClassifierFeatures` finds the weights."""

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
        """Configures training.

        Args:
            network: the classifier.
            optimizer: default AdamW with learning rate 0.002.
            label_smoothing: share of each target that is spread over all classes.
            augment: training pictures are moved by up to so many pixels (mirroring is the data's affair).
            seed: of the moves.

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
        """Checks that data and network fit.

        Raises:
            ValueError: if they do not, or training has no planned end.
        """
        super().setup(stage)
        classes = self._data.num_classes
        if classes != self.network.num_classes:
            raise ValueError(f"the data has {classes} classes, the classifier {self.network.num_classes}")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy () of one batch."""
        x, labels = self._labeled(batch)
        x = random_shift(x, self.augment, generator) if self.augment else x
        return F.cross_entropy(self.logits(x, generator), labels, label_smoothing=self.label_smoothing)

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the network answers (B, K) for pictures `x` (B, C, H, W); `generator` is there for what is random."""
        answer: Tensor = self.network(x)
        return answer

    def measures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy and whether the answer is right, each (B,)."""
        x, labels = self._labeled(batch)
        logits = self.logits(x, generator)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(1) == labels).to(logits.dtype),
        }

    def _labeled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures and labels.

        Raises:
            ValueError: if a picture has no label.
        """
        if batch.condition is None:
            raise ValueError("a classifier learns from labels, but this data has none (num_classes of the datamodule)")
        return batch.x, batch.condition


class NoisyClassifierModule(ClassifierModule):
    """`ClassifierModule` on x + sigma n, with sigma told to the network. Its held-out numbers are means over sigma."""

    def __init__(self, network: NoisyClassifier, *, noise: NoiseDistribution | None = None, **options: Any) -> None:
        """Configures training.

        Args:
            network: the classifier.
            noise: distribution of the noise level; default: ln sigma uniform between ln .002 and ln 80.
            options: as for `ClassifierModule`.
        """
        super().__init__(network, **options)
        self.noise = noise or LogUniform()

    def logits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What the network answers (B, K) for `x` (B, C, H, W) with fresh noise."""
        sigma = self.noise.sample(len(x), generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        answer: Tensor = self.network(x + expand(sigma, x) * noise, sigma)
        return answer


def adversarial_images(network: nn.Module, x: Tensor, labels: Tensor, *, radius: float = 2.0, times: int = 3) -> Tensor:
    """x + delta with |delta| <= radius: projected ascent of the cross-entropy in `times` steps of radius / 2.

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
    """`ClassifierModule` on attacked pictures. Its held-out numbers are those of pictures that are left alone."""

    def __init__(self, network: Classifier, *, radius: float = 2.0, attacks: int = 3, **options: Any) -> None:
        """Configures training.

        Args:
            network: the classifier.
            radius: of the L2 ball around each picture, in units of encoded pictures.
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
        """Mean cross-entropy () of the attacked batch."""
        x, labels = self._labeled(batch)
        x = adversarial_images(self.network, x, labels, radius=self.radius, times=self.attacks)
        return super().loss(batch._replace(x=x), generator)
