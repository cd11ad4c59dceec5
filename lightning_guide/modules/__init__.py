"""LightningModules: diffusion training with guided evaluation, classifiers and other guide networks."""

from __future__ import annotations

from lightning_guide.modules.classifiers import ClassifierModule, NoisyClassifierModule, RobustClassifierModule
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.modules.evaluation_mixin import EvaluatedModule
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.modules.image_tasks import ImageTask, ImageTaskModule, Parts, Reconstruction, Sketch
from lightning_guide.modules.supervised import SupervisedModule

__all__ = [
    "ClassifierModule",
    "DiffusionModule",
    "EvaluatedModule",
    "GradientFineTuning",
    "GradientOptimization",
    "NoisyClassifierModule",
    "Parts",
    "ImageTask",
    "ImageTaskModule",
    "Reconstruction",
    "RobustClassifierModule",
    "Sketch",
    "SupervisedModule",
]
