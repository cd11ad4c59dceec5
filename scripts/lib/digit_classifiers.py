"""Small classifiers of the digit mixture: trained ones, and the exact one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.modules.classifiers import adversarial_images
from lightning_guide.networks.classifiers import NoisyClassifier, SmallClassifier
from scripts.lib.digit_prior import DigitPrior

WIDTHS = [16, 32, 32]


class Exact(nn.Module):
    """The exact ln p(y | x, sigma)."""

    num_classes = 10

    def __init__(self, prior: DigitPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ln p(y | x, sigma) (B, 10)."""
        return self.prior.log_labels(x, sigma)


class Unlabeled(Denoiser):
    """The prior without its labels."""

    data_shape, num_classes, sigma_data = (1, 8, 8), 0, 0.5

    def __init__(self, prior: DigitPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x], whatever the condition."""
        clean: Tensor = self.prior(x, sigma)
        return clean


class InDouble(nn.Module):
    """A float32 network for float64 images."""

    num_classes = 10

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Logits in the dtype of `x`."""
        answer: Tensor = self.network(x.float(), *(other.float() for other in others))
        return answer.to(x.dtype)


def trained(kind: str, prior: DigitPrior, seed: int, *, examples: int, steps: int) -> InDouble:
    """Train a classifier of a kind ("clean", "noisy" or "robust") on `examples` draws of the prior."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = prior.sample(examples, generator)
    torch.manual_seed(seed)
    make: Any = NoisyClassifier if kind == "noisy" else SmallClassifier
    network = make([1, 8, 8], num_classes=10, widths=WIDTHS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        batch, y = x[rows].float(), labels[rows]
        if kind == "noisy":
            sigma = (torch.rand(128, generator=generator) * 6 - 3).exp()  # 0.05 to 20
            noise = torch.randn(batch.shape, generator=generator)
            loss = F.cross_entropy(network(batch + sigma[:, None, None, None] * noise, sigma), y)
        else:
            batch = adversarial_images(network, batch, y) if kind == "robust" else batch
            loss = F.cross_entropy(network(batch), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return InDouble(network)
