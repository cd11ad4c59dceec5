"""Self-attention guidance (SAG) and blur guidance: the negative's input is blurred where the network looks.

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
    """D(x~) - (x~ - x) with x~ = x + M (blur(D) - D). One evaluation on top of the positive's; pictures (C, H, W)."""

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
            mask: says where the clean estimate is blurred.
            blur: standard deviation of the Gaussian as a fraction of the shorter side of x; the paper has 9 pixels at
                256, and 3 at 128. Pictures of few pixels need more, 1/8 at 8 pixels, say.
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
        """As `Guidance.resolve`; a model that cannot be guided like this is refused.

        Raises:
            ValueError: if the model does not work on pictures, or the mask cannot read it.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, BlurredInput)
        resolved._check_pictures()
        self.mask.check(resolved.positive)
        return resolved

    def start_from_prediction(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, NegativeOfPrediction]:
        """The model as the mask has to see it, and the negative.

        Raises:
            ValueError: as `resolve`.
        """
        self._check_pictures()
        perturbed = self.positive.start(trajectory)
        observed, mask = self.mask.start_mask(model, trajectory)

        def react(pos: Prediction, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            side = min(x.shape[2:])
            blurred = gaussian_blur(pos.clean, sigma=self.blur * side, radius=max(1, round(self.reach * side)))
            shift = mask(pos.clean) * (blurred - pos.clean)  # x~ - x
            neg = perturbed(x + shift, sigma, condition)
            return Prediction(neg.clean - shift, neg.noise)

        return observed, react

    def _check_pictures(self) -> None:
        if len(self.positive.data_shape) != 3:
            raise ValueError(
                f"blurring the input needs pictures (channels, height, width); "
                f"this model works on x of shape {self.positive.data_shape}"
            )


class SelfAttentionGuidance(Guided):
    """D + (w - 1) (D~ - D(x~)). Two evaluations; needs attention, or another mask (`Everywhere`: blur guidance)."""

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
