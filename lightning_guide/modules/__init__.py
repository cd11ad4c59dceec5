"""LightningModules: diffusion training with guided evaluation, and what it is made of."""

from __future__ import annotations

from lightning_guide.modules.classifiers import ClassifierModule, NoisyClassifierModule, RobustClassifierModule
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.modules.evaluation_mixin import EvaluatedModule
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimisation
from lightning_guide.modules.image_tasks import Parts, PictureTask, PictureTaskModule, Reconstruction, Sketch
from lightning_guide.modules.supervised import SupervisedModule

__all__ = [
    "ClassifierModule",
    "DiffusionModule",
    "EvaluatedModule",
    "GradientFineTuning",
    "GradientOptimisation",
    "NoisyClassifierModule",
    "Parts",
    "PictureTask",
    "PictureTaskModule",
    "Reconstruction",
    "RobustClassifierModule",
    "Sketch",
    "SupervisedModule",
]
