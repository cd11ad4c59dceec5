"""Handwritten digits conditioned on embeddings of their spelled names: the smallest data with embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.digits import Digits
from datamodules.examples import TensorExamples
from lightning_guide.conditioning import pad_tokens
from lightning_guide.seeds import mix

__all__ = ["DigitCaptions", "embed_spelling"]


def embed_spelling(words: Sequence[str], *, channels: int, length: int | None = None) -> Tensor:
    """Embed words without a text encoder: (P, L, channels), one token for each letter, padded with zeros.

    Token i of a word is (a + b) / sqrt(2), with a fixed standard normal vector a of its letter and b of the position i.
    L is `length`, by default that of the longest word. The result is the same on every machine and ignores case.

    Raises:
        ValueError: if there is no word, a word is empty or longer than `length`, or `channels` is below 1.
    """
    if not words or not all(words) or channels < 1:
        raise ValueError(
            f"embed_spelling needs words of one letter or more and channels >= 1, got {list(words)}, {channels}"
        )
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
    """`Digits`, each conditioned on the embedding of its spelled name (`embed_spelling`), (5, token_channels).

    Prompt p is the name of digit p, so that metrics can check whether a sample of prompt p shows digit p. The elements
    have no labels.
    """

    num_classes = 0

    def __init__(self, *, token_channels: int = 32, batch_size: int = 256, num_workers: int = 0, seed: int = 0) -> None:
        """Set `token_channels`, the channels of a letter's embedding."""
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.token_channels = token_channels
        self._names = embed_spelling(NAMES, channels=token_channels)

    def prompts(self) -> Tensor:
        """Return the embeddings of the ten names, (10, 5, token_channels)."""
        return self._names

    @property
    def prompt_texts(self) -> Sequence[str]:
        """The ten names."""
        return NAMES

    def training(self) -> TensorExamples:
        """Return the training set, conditioned on names in place of labels."""
        return self._with_names(super().training())

    def heldout(self) -> TensorExamples:
        """Return the held-out images, conditioned on names in place of labels."""
        return self._with_names(super().heldout())

    def _with_names(self, digits: TensorExamples) -> TensorExamples:
        assert digits.labels is not None
        return TensorExamples(digits.x, self._names[digits.labels])
