"""Words as embeddings without a text encoder: a token for each letter, a fixed random vector of it and of its place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.conditions import padded
from lightning_guide.seeds import mix

__all__ = ["spelled"]


def spelled(words: Sequence[str], *, channels: int, length: int | None = None) -> Tensor:
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
    return torch.stack([padded(each, longest if length is None else length) for each in tokens])
