"""Normalized attention guidance (NAG): attention to texts is pushed away from what it reads in the negative prompt.

Chen et al. 2025, "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models",
https://arxiv.org/abs/2505.21179. Equations as we know them; the paper was not read.

For the same queries, Z+ is what tokens of the image read in the positive prompt, Z- what they read in the negative one:

    Z~ = Z- + w (Z+ - Z-)
    Z^ = Z~ min(R, tau) / R,  R = |Z~|_1 / |Z+|_1
    Z = alpha Z^ + (1 - alpha) Z+

The norms are over the channels of a token, all heads together, before the output projection. The negative prompt is
"no condition" of the model: the empty prompt, or the negative prompt that the model was loaded with. Only its tokens
enter, as keys and values; a pooled vector stays that of the positive. In joint attention its tokens are a stream of
their own, which attends to the image and to itself. A ControlNet reads the positive prompt alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import text_readers
from lightning_guide.guidance.perturbation import ModuleWrapper, Perturbation, Perturbed
from lightning_guide.network import Network
from lightning_guide.networks.attention import Attend, TextReader, WholeText
from lightning_guide.utils.modules import ModuleReplacement

__all__ = ["NormalizedAttentionGuidance", "NormalizedTexts", "normalized"]


def normalized(positive: Tensor, negative: Tensor, weight: float, tau: float, alpha: float) -> Tensor:
    """Return Z `(B, heads, N, d)` of the module's formula for Z+ = `positive` and Z- = `negative`, in their dtype.

    Examples:
        >>> one, two = torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]])
        >>> normalized(one, two, 3.0, 1.5, 1.0).tolist()  # Z~ = (3, 1), R = 2
        [[[[2.25, 0.75]]]]
    """
    precision = torch.promote_types(positive.dtype, torch.float32)  # of sums over all channels
    pushed = positive + (weight - 1) * (positive - negative)
    before, after = (z.abs().sum((1, 3), keepdim=True, dtype=precision) for z in (positive, pushed))
    limit = (tau * before / after.clamp(min=torch.finfo(precision).tiny)).clamp(max=1)
    return torch.lerp(positive, pushed * limit.to(pushed), alpha)


def _half(x: Tensor, own: int, i: int) -> Tensor:
    """Return the first `own` of the keys `x` (*, own + 2 L, d), and those of text `i`, 0 or 1."""
    texts = x[..., own:, :].chunk(2, dim=-2)[i]
    return torch.cat([x[..., :own, :], texts], dim=-2) if own else texts


class _NormalizedReader(TextReader):
    """A reader whose keys and values are those of two texts of the same length."""

    def __init__(self, inner: Any, weight: float, tau: float, alpha: float) -> None:
        super().__init__()
        self.inner, self.weight, self.tau, self.alpha = inner, weight, tau, alpha

    def forward(
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, own: int = 0
    ) -> Tensor:
        """Return Z `(B, heads, N, d)`."""
        masks = [None if mask is None else _half(mask.mT, own, i).mT for i in (0, 1)]
        positive, negative = (
            self.inner(attend, q, _half(k, own, i), _half(v, own, i), masks[i], own=own) for i in (0, 1)
        )
        return normalized(positive, negative, self.weight, self.tau, self.alpha)

    def texts(self, q: Tensor, k: Tensor, v: Tensor, *, own: int) -> Tensor:
        """Return what each text reads in the image and in itself."""
        rows = enumerate(q.chunk(2, dim=-2))
        return torch.cat([self.inner.texts(q, _half(k, own, i), _half(v, own, i), own=own) for i, q in rows], dim=-2)


class _FirstText(WholeText):
    """The first of two texts of the same length."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        text: Tensor = self.inner(tokens)
        return text[:, : text.shape[1] // 2]


class _PairedTexts(ModuleWrapper):
    """A network whose embedding holds the texts of the condition and of no condition."""

    def embed(self, condition: Tensor | None, batch: int) -> Tensor:
        network: Any = self.inner
        paired: Tensor = network.paired(network.embed(condition, batch), network.embed(None, batch))
        return paired

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor) -> Tensor:
        return self.inner(x, c_noise, embedding)


class NormalizedTexts(Perturbation):
    """All attention to texts as in the module's formula; w = 1 and alpha = 0 change nothing."""

    static = True

    def __init__(self, weight: float = 6.0, *, tau: float = 1.5, alpha: float = 0.5) -> None:
        """`weight` w is finite, `tau` >= 1 bounds the growth of the norm, `alpha` in [0, 1] is the share of Z^.

        Raises:
            ValueError: if one is outside.
        """
        super().__init__()
        if not (math.isfinite(weight) and tau >= 1 and 0 <= alpha <= 1):
            raise ValueError(
                f"NAG needs a finite weight, tau of at least 1 and alpha between 0 (off) and 1, got {weight}, {tau} "
                f"and {alpha}"
            )
        self.weight, self.tau, self.alpha = weight, tau, alpha

    def chosen(self, network: Network) -> list[str]:
        """Return the network itself, all its readers, and what gets one text as a whole.

        Raises:
            ValueError: if it has none, or cannot read two texts.
        """
        names = text_readers(network, type(self).__name__)
        none = network.embed(None, 1)
        assert none is not None
        network.paired(none, none)
        whole = [name for name, module in network.named_modules() if isinstance(module, WholeText)]
        return ["", *names, *whole]

    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """Return readers of two texts, and the network that embeds them."""
        if self.weight == 1 or self.alpha == 0:
            return dict.fromkeys(names, lambda module: module)
        return {name: self._part if name else _PairedTexts for name in names}

    def _part(self, inner: nn.Module) -> nn.Module:
        if isinstance(inner, WholeText):
            return _FirstText(inner)
        return _NormalizedReader(inner, self.weight, self.tau, self.alpha)


class NormalizedAttentionGuidance(Perturbed):
    """NAG: the model with `NormalizedTexts`. One evaluation, with two texts; needs attention to texts.

    The paper's scale phi is w - 1; its usual values are phi = 5, tau = 1.5 (2.5) and alpha = 0.5 (0.25).
    """

    def __init__(
        self, weight: float = 6.0, *, tau: float = 1.5, alpha: float = 0.5, positive: Denoiser | None = None
    ) -> None:
        """`weight`, `tau` and `alpha` as in `NormalizedTexts`."""
        super().__init__([NormalizedTexts(weight, tau=tau, alpha=alpha)], positive=positive)
