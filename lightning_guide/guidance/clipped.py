"""Clipping and dynamic thresholding of the clean estimate, which published pixel models are sampled with.

Ho et al. 2020 (DDPM), https://arxiv.org/abs/2006.11239 (clipping); Saharia et al. 2022 (Imagen),
https://arxiv.org/abs/2205.11487, section 2.3 (dynamic thresholding).
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main

__all__ = ["Clipped"]


class Clipped(Guidance):
    """Clean estimate of `positive`, limited to [-`limit`, `limit`]: the outermost guidance. No further evaluation.

    With a `quantile` p, dynamic thresholding: each sample is clipped at s, the p-quantile of its |D| but within
    [`limit`, `ceiling`], and scaled by limit / s.

    Examples:
        >>> import torch
        >>> from lightning_guide.distributions.gaussian_mixture import gaussian
        >>> model = gaussian(torch.zeros(2), torch.eye(2))
        >>> x, sigma = torch.tensor([[4.0, -1.0]]), torch.tensor(1.0)
        >>> Clipped(positive=model)(x, sigma).tolist(), Clipped(quantile=1.0, positive=model)(x, sigma).tolist()
        ([[1.0, -0.5]], [[1.0, -0.25]])
    """

    def __init__(
        self,
        limit: float = 1.0,
        *,
        quantile: float | None = None,
        ceiling: float = math.inf,
        follow: bool = True,
        positive: Denoiser | None = None,
    ) -> None:
        """Configure the limits.

        Args:
            limit: largest magnitude of the data, 1 for images in [-1, 1].
            quantile: p of dynamic thresholding (Imagen: 0.995); None: plain clipping.
            ceiling: largest s (IF: 1.5).
            follow: whether samplers move along the noise implied by the clipped estimate (DDPM), or along that of the
                estimate before clipping (DDIM without `use_clipped_model_output`).
            positive: the model or guidance whose estimate is clipped; default: the model under evaluation.

        Raises:
            ValueError: unless `limit` is positive, `ceiling` not below it, and `quantile` in (0, 1].
        """
        super().__init__()
        if not 0 < limit <= ceiling or not (quantile is None or 0 < quantile <= 1):
            raise ValueError(
                f"Clipped needs limit > 0, a ceiling from limit on and a quantile in (0, 1], got {limit}, {ceiling} "
                f"and {quantile}"
            )
        self.limit, self.quantile, self.ceiling, self.follow = limit, quantile, ceiling, follow
        self.positive = positive if positive is not None else Main()

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the clipped denoiser of one trajectory."""
        inner = self.positive.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            prediction = inner(x, sigma, condition)
            noise = prediction.noise if self.follow else prediction.direction(x, sigma)
            return replace(prediction, clean=self._clip(prediction.clean), noise=noise)

        return predict

    def _clip(self, clean: Tensor) -> Tensor:
        """Return the limited estimate (B, *)."""
        if self.quantile is None:
            return clean.clamp(-self.limit, self.limit)
        magnitudes = clean.flatten(1).abs().sort(dim=1).values  # torch.quantile refuses more than 2^24 numbers
        place = self.quantile * (magnitudes.shape[1] - 1)
        low, high = magnitudes[:, int(place)], magnitudes[:, min(int(place) + 1, magnitudes.shape[1] - 1)]
        s = expand(low.lerp(high, place - int(place)).clamp(self.limit, self.ceiling), clean)
        return clean.clamp(-s, s) * (self.limit / s)
