"""Words as embeddings without a text encoder: a token for each letter, a fixed random vector of it and of its place.

Handwritten digits under their names, spelled: the smallest data with stored embeddings for conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.digits import Digits
from datamodules.examples import TensorExamples
from lightning_guide.conditioning import pad_tokens
from lightning_guide.seeds import mix

__all__ = ["DigitCaptions", "spell_number"]


def spell_number(words: Sequence[str], *, channels: int, length: int | None = None) -> Tensor:
    """Embeddings (P, L, channels) of words of up to L letters, default the longest; shorter ones end in zeros.

    Token i of a word is (a + b) / sqrt(2), with a standard normal vector a of its letter and b of the place i. The same
    on every machine; upper and lower case are one.

    Raises:
        ValueError: if there is no word, one is empty or longer than `length`, or `channels` is below 1.
    """
    if not words or not all(words) or channels < 1:
        raise ValueError(f"spelled needs words of one letter or more and channels >= 1, got {list(words)}, {channels}")
    longest = max(len(word) for word in words)

    def vector(kind: str, which: int | str) -> Tensor:
        return torch.randn(channels, generator=torch.Generator().manual_seed(mix("spelling", kind, which)))

    tokens = [
        torch.stack([(vector("letter", letter) + vector("place", i)) / 2**0.5 for i, letter in enumerate(word.lower())])
        for word in words
    ]
    return torch.stack([pad_tokens(each, longest if length is None else length) for each in tokens])


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DigitCaptions(Digits):
    """The digits as `Digits`, each conditioned on the letters of its name (`spell_number`), (5, token_channels).

    Prompt p is the name of digit p, so that metrics can ask whether a sample of prompt p is a p. There are no labels.
    """

    num_classes = 0

    def __init__(self, *, token_channels: int = 32, batch_size: int = 256, num_workers: int = 0, seed: int = 0) -> None:
        """`token_channels`: numbers that a letter is told by."""
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.token_channels = token_channels
        self._names = spell_number(NAMES, channels=token_channels)

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
