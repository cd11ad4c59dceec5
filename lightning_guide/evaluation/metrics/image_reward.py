"""ImageReward, Xu et al. 2023, https://arxiv.org/abs/2304.05977, by its package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from PIL import Image

from lightning_guide.evaluation.metrics.prompt_score import PackageScore

__all__ = ["ImageReward"]


class ImageReward(PackageScore):
    """ImageReward `image_reward`: mean reward of images and prompts by a model of human preference; higher is better.

    Needs `pip install image-reward`, which downloads ImageReward-v1.0. Its interface, `load(name)` and
    `score(prompt, images)`, is remembered and was tested with a stub of that shape alone.
    """

    key = "image_reward"

    def load(self) -> Any:
        """Return the model."""
        return import_module("ImageReward").load("ImageReward-v1.0", device=str(self.device))

    def rate(self, model: Any, images: list[Image.Image], prompt: str) -> Sequence[float]:
        """Return the rewards; the package returns a number for a single image."""
        found = model.score(prompt, images)
        return [found] if isinstance(found, float) else list(found)
