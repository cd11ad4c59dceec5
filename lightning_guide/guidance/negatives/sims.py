"""SIMS: a model guided away from the same model after training on its own samples.

Alemohammad et al. 2024, "Self-Improving Diffusion Models with Synthetic Data", https://arxiv.org/abs/2408.16333: the
auxiliary starts as the base and is trained only on samples of the base, for a budget of B images; then
s = (1 + omega) s_base - omega s_aux at every call of the sampler. The paper's omega is w - 1 here.

For Gaussian models of covariances that commute, the samples have V = V_base^(1 + omega) V_aux^(-omega).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.schedules import WeightSchedule

__all__ = ["SIMS"]


class SIMS(Guided):
    """SIMS, D_aux + w (D_base - D_aux) with w = 1 + omega: w = 1 is the base, w = 0 the auxiliary. 2 evaluations."""

    def __init__(
        self,
        auxiliary: Denoiser,
        weight: float | WeightSchedule = 2.0,
        *,
        base: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`auxiliary` is usually a `Snapshot` of the run that trained it; `base` the model under evaluation by default.

        Raises:
            ValueError: if `weight` is not finite.
        """
        super().__init__([auxiliary], [weight], positive=base, combination=combination)

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models; for two exact Gaussians a weight with an unstable flow is refused.

        Raises:
            ValueError: naming the weights that are stable.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, SIMS)
        base, auxiliary = resolved.positive, resolved.negatives[0]
        exact = isinstance(base, GaussianMixture) and isinstance(auxiliary, GaussianMixture)
        if exact and isinstance(weight := resolved.weights[0], int | float):  # a schedule may be unstable in parts
            _check_stable(base, auxiliary, float(weight))  # type: ignore[arg-type]
        return resolved


def _check_stable(base: GaussianMixture, auxiliary: GaussianMixture, weight: float) -> None:
    r"""Refuse a flow dx/ds = s [w (V_b + s^2)^-1 - (w - 1) (V_a + s^2)^-1] x that anywhere pushes away from the mean.

    The bracket is positive at every s exactly if w V_a - (w - 1) V_b is, that is for w (1 - l) < 1 at each eigenvalue l
    of V_b^(-1/2) V_a V_b^(-1/2). Mixtures of several components are not checked.
    """
    if len(base.eigenvalues) > 1 or len(auxiliary.eigenvalues) > 1:
        return
    V_b, V_a = _covariance(base), _covariance(auxiliary)
    lowest = float(torch.linalg.eigvalsh(weight * V_a - (weight - 1) * V_b).min())
    if lowest < -1e-9 * float(V_b.diagonal().max()):
        ratio = torch.linalg.eigvals(torch.linalg.solve(V_b, V_a)).real
        above, below = 1 - float(ratio.min()), 1 - float(ratio.max())
        bounds = [f"w < {1 / above:.4g}"] * (above > 0) + [f"w > {1 / below:.4g}"] * (below < 0)
        raise ValueError(
            f"SIMS at weight {weight:g} is unstable between these Gaussians: w V_aux - (w - 1) V_base has the "
            f"eigenvalue {lowest:.3g}; expected {' and '.join(bounds)} (omega = w - 1)"
        )


def _covariance(gaussian: GaussianMixture) -> Tensor:
    """Return the covariance (d, d) of a single Gaussian, float64."""
    vectors = gaussian.eigenvectors[0].double()
    return vectors * gaussian.eigenvalues[0].double() @ vectors.mT
