"""Sliding-mode control of guidance (SMC-CFG): the velocity difference with a correction that switches its sign.

"CFG-Ctrl: Control-Based Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2603.03281: the difference of the
velocities is the error of a controller, e = v_pos - v_neg, an exponential sliding surface e' + lambda e is to become 0,
and a term of the opposite sign corrects e. Only the abstract was read; the discrete form is that of textbooks. With the
corrected difference e_before of the step before,

    s = (e - e_before) + lambda e_before,    e <- e - K sign(s),    v = v_neg + w e,

all elementwise. In the first step e_before = e.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.combinations.base import Pair, PairCombination, StepMemory

__all__ = ["SlidingMode"]


class SlidingMode(PairCombination):
    """SMC-CFG. Plain at gain 0; at rate 1 each element loses `gain` of its size, down to 0 and past it.

    e_before belongs to one negative and one trajectory. It advances once in each step, by the predictor; a corrector
    uses that of the step before. As published the corrected e has the factor w, so that the rule does not approach the
    positive as w approaches 1; at w = 1 it is off like every rule.
    """

    def __init__(self, *, rate: float = 5.0, gain: float = 0.2) -> None:
        """`rate` lambda of the surface, in units of one step; `gain` K in units of the velocity, so of the data.

        Raises:
            ValueError: unless the rate is finite and positive, and the gain finite and not negative.
        """
        if not (0 < rate < math.inf and 0 <= gain < math.inf):
            raise ValueError(f"SlidingMode needs a finite rate > 0 and a finite gain >= 0, got {rate} and {gain}")
        self.rate, self.gain = rate, gain
        self._corrected = StepMemory()

    def push(self, pair: Pair, trajectory: Trajectory) -> Tensor:
        """Return (w - 1) (D_pos - D_neg) and the step of D that w times the correction of v makes."""
        difference = pair.difference
        e = -difference / pair.sigma.to(difference) - difference  # v_pos - v_neg, the sign without rounding
        before = self._corrected.before(trajectory)
        before = e if before is None else before
        correction = -self.gain * (e - before + self.rate * before).sign()
        self._corrected.keep(e + correction, trajectory)
        return (pair.weight - 1) * difference + pair.from_velocity(pair.weight * correction)
