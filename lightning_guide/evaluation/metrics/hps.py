"""Human preference score (HPS) v2, Wu et al. 2023, https://arxiv.org/abs/2306.09341, by its package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lightning_guide.evaluation.metrics.prompt_score import PackageScore

__all__ = ["HPS"]


class HPS(PackageScore):
    """Human preference score `hps`: mean similarity of images and prompts by a tuned CLIP; higher is better.

    Needs `pip install hpsv2`, which downloads its weights. Its interface, `score(images, prompt, hps_version=...)`, is
    remembered and was tested with a stub of that shape alone. Versions do not compare.
    """

    key = "hps"

    def __init__(self, prompts: Sequence[str] | str, *, version: str = "v2.1") -> None:
        """Take a text per class or prompt, or a file with one a line, and the `version` of the weights."""
        super().__init__(prompts)
        self.version = version

    def load(self) -> Any:
        """Return the package, which keeps the model itself."""
        import hpsv2

        return hpsv2

    def rate(self, model: Any, images: list[Image.Image], prompt: str) -> Sequence[float]:
        """Return the scores."""
        return list(model.score(images, prompt, hps_version=self.version))
