"""Negatives: each file holds one published way to make the prediction that is pushed away from."""

from __future__ import annotations

from lightning_guide.guidance.negatives.autoguidance import Autoguidance, AutoguidanceBlend
from lightning_guide.guidance.negatives.cads import AnnealedCondition, ConditionAnnealedGuidance
from lightning_guide.guidance.negatives.cfg import ClassifierFreeGuidance, Unconditional
from lightning_guide.guidance.negatives.cfg_pp import ClassifierFreeGuidancePP, RenoiseWithNegative
from lightning_guide.guidance.negatives.compressed import PrunedWeights, QuantizedWeights
from lightning_guide.guidance.negatives.degraded import NoisyInput, SamplingDropout
from lightning_guide.guidance.negatives.erg import EntropyRectifyingGuidance, ScaledQueries
from lightning_guide.guidance.negatives.fixed_condition import FixedCondition
from lightning_guide.guidance.negatives.gft import GuidanceFree
from lightning_guide.guidance.negatives.icg import GaussianCondition, IndependentConditionGuidance, RandomCondition
from lightning_guide.guidance.negatives.momentum import AverageVelocity, MomentumGuidance
from lightning_guide.guidance.negatives.nag import NormalizedAttentionGuidance, NormalizedTexts
from lightning_guide.guidance.negatives.neon import Neon
from lightning_guide.guidance.negatives.pag import IdentityAttention, PerturbedAttentionGuidance, SoftIdentityAttention
from lightning_guide.guidance.negatives.pag_maps import (
    BlurredAttention,
    NoisyAttention,
    OffDiagonalMask,
    RandomMask,
    SkipAttention,
)
from lightning_guide.guidance.negatives.pladis import PLADIS, SparseTexts
from lightning_guide.guidance.negatives.s2 import StochasticSelfGuidance, StochasticSkip
from lightning_guide.guidance.negatives.sag import BlurredInput, SelfAttentionGuidance
from lightning_guide.guidance.negatives.sag_masks import (
    AttentionMask,
    FullMask,
    HighFrequency,
    Mask,
    RandomPixels,
    RandomSquare,
)
from lightning_guide.guidance.negatives.sag_saliency import SaliencyMask
from lightning_guide.guidance.negatives.score_scaling import ScoreScaling, ZeroScore
from lightning_guide.guidance.negatives.seg import BlurredQueries, SmoothedEnergyGuidance
from lightning_guide.guidance.negatives.sims import SIMS
from lightning_guide.guidance.negatives.skip_layer import SkipBlocks, SkipLayerGuidance
from lightning_guide.guidance.negatives.swg import (
    MaskedSlidingWindow,
    MaskedSlidingWindowGuidance,
    SlidingWindow,
    SlidingWindowGuidance,
)
from lightning_guide.guidance.negatives.tpg import ShuffledTokens, TokenPerturbationGuidance
from lightning_guide.guidance.negatives.tsg import NoisyNoiseEmbedding, TimeStepGuidance

__all__ = [
    "AnnealedCondition",
    "AttentionMask",
    "Autoguidance",
    "AutoguidanceBlend",
    "AverageVelocity",
    "BlurredAttention",
    "BlurredInput",
    "BlurredQueries",
    "ClassifierFreeGuidance",
    "ClassifierFreeGuidancePP",
    "ConditionAnnealedGuidance",
    "EntropyRectifyingGuidance",
    "FullMask",
    "GaussianCondition",
    "GuidanceFree",
    "HighFrequency",
    "IdentityAttention",
    "IndependentConditionGuidance",
    "Mask",
    "MaskedSlidingWindow",
    "MaskedSlidingWindowGuidance",
    "MomentumGuidance",
    "Neon",
    "NoisyAttention",
    "NoisyInput",
    "NoisyNoiseEmbedding",
    "NormalizedAttentionGuidance",
    "NormalizedTexts",
    "OffDiagonalMask",
    "FixedCondition",
    "PLADIS",
    "PerturbedAttentionGuidance",
    "PrunedWeights",
    "QuantizedWeights",
    "RandomCondition",
    "RandomMask",
    "RandomPixels",
    "RandomSquare",
    "RenoiseWithNegative",
    "SIMS",
    "SaliencyMask",
    "SamplingDropout",
    "ScaledQueries",
    "ScoreScaling",
    "SelfAttentionGuidance",
    "ShuffledTokens",
    "SkipAttention",
    "SkipBlocks",
    "SkipLayerGuidance",
    "SlidingWindow",
    "SlidingWindowGuidance",
    "SmoothedEnergyGuidance",
    "SoftIdentityAttention",
    "SparseTexts",
    "StochasticSelfGuidance",
    "StochasticSkip",
    "TimeStepGuidance",
    "TokenPerturbationGuidance",
    "Unconditional",
    "ZeroScore",
]
