"""Tangential damping (TCFG): the negative without its component along the second singular direction.

Kwon et al. 2025, "TCFG: Tangential Damping Classifier-free Guidance", https://arxiv.org/abs/2503.18137. With the
singular value decomposition M = U S V^T of the 2 x d matrix M = [eps_pos; eps_neg] of each sample, the negative loses
its component along the second right singular vector v_2, and the plain rule follows.

Only the Gram matrix M M^T = [[a, b], [b, c]] is needed. Its first eigenvector is (cos t, sin t) with
tan 2t = 2 b / (a - c), the second u_2 = (-sin t, cos t), and since s_2 v_2 = M^T u_2 that component is

    <eps_neg, v_2> v_2 = cos t (cos t eps_neg - sin t eps_pos).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import Pair, PairCombination, dot

__all__ = ["Tangential"]


class Tangential(PairCombination):
    """TCFG, on eps. At strength 1 the published rule, at 0 plain.

    The rule has no division, so it is finite for all branches; parallel branches have no such component. Branches that
    are orthogonal and of equal length have no first direction: that of the positive is taken, the negative vanishes.
    """

    def __init__(self, *, strength: float = 1.0) -> None:
        """`strength` in [0, 1] is the part of the component that is removed.

        Raises:
            ValueError: if `strength` is outside.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"Tangential needs a strength between 0 (plain) and 1, got {strength}")
        self.strength = strength

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w - 1) (eps_pos - damped eps_neg)."""
        pos, neg = pair.noise
        a, b, c = dot(pos, pos), dot(pos, neg), dot(neg, neg)
        angle = torch.atan2(2 * b, a - c) / 2
        cos, sin = angle.cos(), angle.sin()
        component = cos.to(pos) * (cos.to(pos) * neg - sin.to(pos) * pos)
        return pair.from_noise((pair.weight - 1) * (pos - neg + self.strength * component))
