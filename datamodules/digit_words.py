"""Handwritten digits under their names, spelled: the smallest data with stored embeddings for conditions."""

from __future__ import annotations

from torch import Tensor

from datamodules.digits import Digits
from datamodules.examples import TensorExamples
from datamodules.spelling import spelled

__all__ = ["DigitWords"]

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DigitWords(Digits):
    """The digits as `Digits`, each conditioned on the letters of its name (`spelled`), (5, token_channels).

    Prompt p is the name of digit p, so that metrics can ask whether a sample of prompt p is a p. There are no labels.
    """

    num_classes = 0

    def __init__(
        self, *, token_channels: int = 32, batch_size: int = 256, num_workers: int = 0, seed: int = 0
    ) -> None:
        """`token_channels`: numbers that a letter is told by."""
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.token_channels = token_channels
        self._names = spelled(NAMES, channels=token_channels)

    def prompts(self) -> Tensor:
        """The ten names (10, 5, token_channels)."""
        return self._names

    def training(self) -> TensorExamples:
        """The training set, labels spelled out."""
        return self._named(super().training())

    def heldout(self) -> TensorExamples:
        """The held-out pictures, labels spelled out."""
        return self._named(super().heldout())

    def _named(self, digits: TensorExamples) -> TensorExamples:
        assert digits.labels is not None
        return TensorExamples(digits.x, self._names[digits.labels])
