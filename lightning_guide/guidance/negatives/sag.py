"""Self-attention guidance (SAG) and blur guidance: the negative's input is blurred where attention is high.

Hong et al. 2022, "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance",
https://arxiv.org/abs/2210.00939, equation 11, for EDM denoisers. With the positive D = D(x), the mask M, and

    D~ = M blur(D) + (1 - M) D,    x~ = x + (D~ - D),

the paper's re-noising with the predicted noise, SAG is D + (w - 1) (D~ - D(x~)), the common line
D_neg + w (D - D_neg) with D_neg = D(x~) - (x~ - x). The paper's s is w - 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models, Prediction, Trajectory
from lightning_guide.guidance.base import Main
from lightning_guide.guidance.branches import NegativeOfPrediction, PredictionNegative
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives.sag_masks import AttentionMask, Mask
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.utils.images import gaussian_blur

__all__ = ["BlurredInput", "SelfAttentionGuidance"]


class BlurredInput(PredictionNegative):
    """SAG negative D(x~) - (x~ - x), x~ = x + M (blur(D) - D), for images (C, H, W). One evaluation more."""

    def __init__(
        self,
        mask: Mask | None = None,
        *,
        blur: float = 9 / 256,
        reach: float = 15 / 256,
        positive: Denoiser | None = None,
    ) -> None:
        """`mask`: default `AttentionMask`; `positive`: default the model under evaluation.

        Args:
            mask: where the clean estimate is blurred.
            blur: standard deviation of the Gaussian as a fraction of the shorter side of x; the paper has 9 pixels at
                256, and 3 at 128. Small images need more, for example 1/8 at 8 pixels.
            reach: radius of the kernel as a fraction of the shorter side, but at least one pixel; 15 at 256.
            positive: the model.

        Raises:
            ValueError: if `blur` or `reach` is not positive, or `reach` is not finite.
        """
        super().__init__()
        if not (blur > 0 and 0 < reach < math.inf):
            raise ValueError(f"BlurredInput needs blur > 0 and a finite reach > 0, got {blur} and {reach}")
        self.mask = mask or AttentionMask()
        self.blur, self.reach = blur, reach
        self.positive = positive if positive is not None else Main()

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models; a model that cannot be guided by SAG is refused.

        Raises:
            ValueError: if the model does not work on images, or the mask cannot read it.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, BlurredInput)
        resolved._check_image_shape()
        self.mask.check(resolved.positive)
        return resolved

    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """Return the model as the mask requires it, and the negative."""
        self._check_image_shape()
        perturbed = self.positive.start(trajectory)
        observed, mask = self.mask.start_mask(model, trajectory)

        def negative(pos: Prediction, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            side = min(x.shape[2:])
            blurred = gaussian_blur(pos.clean, sigma=self.blur * side, radius=max(1, round(self.reach * side)))
            shift = mask(pos.clean) * (blurred - pos.clean)  # x~ - x
            neg = perturbed(x + shift, sigma, condition)
            return Prediction(neg.clean - shift, neg.noise)

        return observed, negative

    def _check_image_shape(self) -> None:
        if len(self.positive.data_shape) != 3:
            raise ValueError(
                f"blurring the input needs images (channels, height, width); "
                f"this model works on x of shape {self.positive.data_shape}"
            )


class SelfAttentionGuidance(Guided):
    """SAG, D + (w - 1) (D~ - D(x~)). Two evaluations; needs attention, or another mask (`FullMask`: blur guidance)."""

    def __init__(
        self,
        weight: float | WeightSchedule = 1.5,
        *,
        mask: Mask | None = None,
        blur: float = 9 / 256,
        reach: float = 15 / 256,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`mask`, `blur` and `reach` as in `BlurredInput`; the paper's s = w - 1 is 0.1 to 0.8."""
        positive = positive if positive is not None else Main()
        negative = BlurredInput(mask, blur=blur, reach=reach, positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
