"""Bases of metrics of images and the prompts of their classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.labels import labeled_samples
from lightning_guide.evaluation.metrics.mean import MeanMetric
from lightning_guide.pretrained.prompts import read_prompts

__all__ = ["PackageScore", "PromptScore"]


class PromptScore(MeanMetric):
    """Base of means of a score of image and prompt, over the samples with a label.

    Attributes:
        prompts: one for each class.
    """

    def __init__(self, prompts: Sequence[str] | str) -> None:
        """Take a text per class or prompt, as "a photo of an airplane", or a file with one a line.

        Raises:
            ValueError: if there is none.
        """
        super().__init__()
        if not prompts:
            raise ValueError(f"{type(self).__name__} needs a prompt for each class, got none")
        self.prompts = read_prompts(prompts)

    @abstractmethod
    def scores(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return scores (B,) of images `x` uint8 (B, C, H, W) with the prompts of `labels` (B,), on the host."""

    def values(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scores of the images `x` uint8 (B, C, H, W) with a label `condition` (B,); -1 or None: unlabeled.

        Raises:
            ValueError: if `prepare` was not called, or a label has no prompt.
        """
        if condition is None:
            return torch.zeros(0), torch.arange(0)
        count = len(self.prompts)
        has = f"{type(self).__name__} has {count} prompts"
        x, labels, rows = labeled_samples(x, condition, device=self.device, limit=count, what=has)
        return self.scores(x, labels) if len(labels) else torch.zeros(0), rows


class _Loaded:
    """A loaded model; a copy is the same object, so that clones of a metric share it."""

    def __init__(self) -> None:
        self.model: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loaded:
        return self


class PackageScore(PromptScore):
    """Base of scores by an optional package, of PIL images and one prompt at a time."""

    def __init__(self, prompts: Sequence[str] | str) -> None:
        """Take the prompts."""
        super().__init__(prompts)
        self._loaded = _Loaded()

    @abstractmethod
    def load(self) -> Any:
        """Return the model of the package.

        Raises:
            ImportError: if the package is not installed.
        """

    @abstractmethod
    def rate(self, model: Any, images: list[Image.Image], prompt: str) -> Sequence[float]:
        """Return the scores of `images` with one `prompt`."""

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Load the model; the data are not read.

        Raises:
            ValueError: if the package is not installed, or its weights cannot be found.
        """
        name = type(self).__name__
        if self._loaded.model is not None:
            return
        try:
            self._loaded.model = self.load()
        except ImportError as error:
            raise ValueError(f"{name} needs the package {error.name or error}, which is not installed") from None
        except Exception as error:  # raised by the download
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the model of {name} cannot be loaded ({type(error).__name__}: {reason})") from None

    def scores(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return scores (B,), computed prompt by prompt.

        Raises:
            ValueError: if `prepare` was not called, or the package returns another number of scores.
        """
        self._check_prepared(self._loaded.model is not None)
        pixels = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()  # waits: packages read images on the host
        found = torch.zeros(len(x), dtype=torch.float64)
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero()[:, 0]
            images = [Image.fromarray(pixels[row]) for row in rows.tolist()]
            with torch.no_grad():
                values = [float(each) for each in self.rate(self._loaded.model, images, self.prompts[label])]
            if len(values) != len(rows):
                raise ValueError(f"{type(self).__name__}: got {len(values)} scores for {len(rows)} images")
            found[rows] = found.new_tensor(values)
        return found
