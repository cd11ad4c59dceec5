"""Masks of self-attention guidance (SAG): where the negative's input is blurred (M = 1) or kept (M = 0).

The six of the ablation in Hong et al. 2022, https://arxiv.org/abs/2210.00939: everywhere, high frequencies, random
pixels, a square, an external model's saliency (`SaliencyMask`) and the network's own attention (`AttentionMask`).

`AttentionMask` reads the self-attention of the positive pass: of A = softmax(q k^T / sqrt(d)) `(B, heads, N, N)`, the
mean over heads, summed over queries, is the attention that each key receives, 1 on average; M = (that > psi). In joint
attention, where texts receive a part, that of the image is scaled to 1 on average.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import AttentionPerturbation
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.networks.attention import AttentionCore
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["AttentionMask", "FullMask", "HighFrequency", "Mask", "MaskAt", "RandomPixels", "RandomSquare"]


MaskAt = Callable[[Tensor], Tensor]
"""clean (B, C, H, W) -> mask (B or 1, 1, H, W) of zeros and ones, in dtype and device of `clean`."""


class Mask(HasRecipe, ABC):
    """Base of the masks of SAG."""

    def check(self, model: Denoiser) -> None:
        """Refuse a `model` that the mask cannot read, with a ValueError."""

    @abstractmethod
    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return a replacement of the positive `model` along `trajectory`, and the mask of its clean estimates.

        Most masks read the clean estimate alone, and return the model itself.
        """


class FullMask(Mask):
    """M = 1 on the whole image: blur guidance."""

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return the model and ones."""
        return model, lambda clean: clean.new_ones(1, 1, *clean.shape[2:])


class HighFrequency(Mask):
    """M = (|h| > psi mean |h|), h the part of the clean estimate above a frequency, |h| summed over channels.

    The paper does not publish its cutoff; both defaults are ours.
    """

    def __init__(self, *, cutoff: float = 0.5, psi: float = 1.0) -> None:
        """`cutoff`: highest frequency that is removed, 1 is the Nyquist frequency; `psi`: of the mean.

        Raises:
            ValueError: if `cutoff` is not in [0, 1).
        """
        if not 0 <= cutoff < 1:
            raise ValueError(f"HighFrequency needs a cutoff in [0, 1), as a fraction of Nyquist's, got {cutoff}")
        self.cutoff, self.psi = cutoff, psi

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return the model and the thresholded high-pass."""
        return model, self._mask

    def _mask(self, clean: Tensor) -> Tensor:
        H, W = clean.shape[2:]
        rows, columns = (2 * torch.fft.fftfreq(n, device=clean.device, dtype=clean.dtype) for n in (H, W))
        keep = torch.hypot(rows[:, None], columns[None]) > self.cutoff
        high = torch.fft.ifft2(torch.fft.fft2(clean) * keep).real.abs().sum(1, keepdim=True)
        return (high > self.psi * high.mean((2, 3), keepdim=True)).to(clean)


class RandomPixels(Mask):
    """M = 1 at each pixel with probability `area`, drawn at each evaluation and for each sample."""

    def __init__(self, area: float = 0.5) -> None:
        """`area`: expected fraction of the image.

        Raises:
            ValueError: if `area` is not in [0, 1].
        """
        self.area = _fraction(area, self)

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return the model and a mask drawn from the random streams of `trajectory`."""

        def mask(clean: Tensor) -> Tensor:
            draws = trajectory.seeds.uniform("random pixels", (1, *clean.shape[2:]), clean.device)
            return (draws < self.area).to(clean)

        return model, mask


class RandomSquare(Mask):
    """M = 1 in one square at a random place, drawn at each evaluation and for each sample.

    Its side is sqrt(area H W), rounded; where that exceeds a side of the image, it is a rectangle.
    """

    def __init__(self, area: float = 0.5) -> None:
        """`area`: fraction of the image.

        Raises:
            ValueError: if `area` is not in [0, 1].
        """
        self.area = _fraction(area, self)

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return the model and a mask drawn from the random streams of `trajectory`."""

        def inside(purpose: str, size: int, side: int, clean: Tensor) -> Tensor:
            first = trajectory.seeds.integers(purpose, size - side + 1, clean.device)[:, None]
            at = torch.arange(size, device=clean.device)
            return (at >= first) & (at < first + side)  # (B, size)

        def mask(clean: Tensor) -> Tensor:
            H, W = clean.shape[2:]
            side = math.sqrt(self.area * H * W)
            height = min(H, round(max(side, side * side / W)))
            width = min(W, round(side * side / height)) if height else 0
            rows, columns = inside("square row", H, height, clean), inside("square column", W, width, clean)
            return (rows[:, None, :, None] & columns[:, None, None, :]).to(clean)

        return model, mask


def _fraction(area: float, mask: Mask) -> float:
    if not 0 <= area <= 1:
        raise ValueError(f"{type(mask).__name__} needs an area between 0 and 1, got {area}")
    return area


class _Attention:
    """Attention received by the tokens of a layer at the last evaluation; copies of the network share this object.

    Attributes:
        received: `(B, 1, h, w)`.
    """

    received: Tensor


class _RecordingCore(AttentionCore):
    """An attention core that also records the attention that each token receives; its result is that of `core`."""

    def __init__(self, core: nn.Module, record: _Attention) -> None:
        super().__init__()
        self.core, self.record = core, record

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        if size is None:
            raise ValueError("AttentionMask needs attention over a 2D token grid; this network has no grid")
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, heads, N, M)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        received = scores.softmax(dim=-1, dtype=dtype).mean(dim=1).sum(dim=1)[:, : q.shape[-2]]
        if k.shape[-2] > q.shape[-2]:
            received = received / received.mean(dim=1, keepdim=True)
        self.record.received = received.unflatten(1, (1, *size))
        return self.core(q, k, v, size)


class ObservedAttention(AttentionPerturbation):
    """Attention cores that also compute their map by an explicit softmax, for one trajectory."""

    def __init__(self, *, layers: Sequence[str] | None) -> None:
        super().__init__(layers=layers)
        self.records: list[_Attention] = []

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        self.records.append(_Attention())
        return _RecordingCore(module, self.records[-1])


class AttentionMask(Mask):
    """M = (attention received > psi), on the token grid, enlarged to the image by nearest neighbors.

    The mask costs one attention map (B, heads, N, N) in each observed layer, and no evaluation. The attention received
    is averaged over several layers.
    """

    def __init__(self, *, layers: Sequence[str] | None = None, psi: float = 1.0) -> None:
        """`layers`: attention cores by name or pattern, None: the network's default; `psi`: 1 in the paper.

        Raises:
            ValueError: if there is no layer, or `psi` is not a number.
        """
        if layers is not None and not layers:
            raise ValueError("AttentionMask needs one layer or more, got layers: []; null is the default")
        if math.isnan(psi):
            raise ValueError("AttentionMask needs a number psi, 1 in the paper, got nan")
        self.layers, self.psi = layers, psi

    def check(self, model: Denoiser) -> None:
        """Refuse layers that do not exist, and a `model` without a network."""
        Perturbed([ObservedAttention(layers=self.layers)], positive=model).layers()

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return `model` with observed attention, and the mask of its last evaluation."""
        observation = ObservedAttention(layers=self.layers)
        observed = Perturbed([observation], positive=model).network(trajectory)

        def mask(clean: Tensor) -> Tensor:
            size = tuple(clean.shape[2:])
            received = [F.interpolate(record.received, size, mode="nearest-exact") for record in observation.records]
            return (torch.stack(received).mean(0) > self.psi).to(clean)

        return observed, mask
