"""Evaluation: feature extractors, metrics of generated samples, and sampling loops."""

from __future__ import annotations

from lightning_guide.evaluation import features, metrics, reference
from lightning_guide.evaluation.evaluation import Evaluation, SampleIndices
from lightning_guide.evaluation.features import *
from lightning_guide.evaluation.metrics import *
from lightning_guide.evaluation.planned_guiders import Storing
from lightning_guide.evaluation.reference import *
from lightning_guide.evaluation.runner import GuidedEvaluations
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SamplingLoop

__all__ = ["DrawnSamples", "Evaluation", "GuidedEvaluations", "SampleIndices", "SamplingLoop", "Storing"]
__all__ += features.__all__
__all__ += metrics.__all__
__all__ += reference.__all__
