"""Guidances that change the condition of a branch."""

from lightning_guide.guidance.condition.annealed import AnnealedCondition, ConditionAnnealedGuidance
from lightning_guide.guidance.condition.gaussian import GaussianCondition
from lightning_guide.guidance.condition.random import IndependentConditionGuidance, RandomCondition

__all__ = [
    "AnnealedCondition",
    "ConditionAnnealedGuidance",
    "GaussianCondition",
    "IndependentConditionGuidance",
    "RandomCondition",
]
