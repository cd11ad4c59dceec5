"""Texts of prompts: read from a file, encoded once and kept by content, in half precision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_guide.conditioning import token_mask
from lightning_guide.utils.arrays import read_array
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import atomic

__all__ = ["CachedPrompts", "Encoders", "cache_folder", "half_precision", "read_prompts"]


def cache_folder() -> Path:
    """Return the folder that LIGHTNING_GUIDE_CACHE names in the environment, else ~/.cache/lightning_guide."""
    return Path(os.environ.get("LIGHTNING_GUIDE_CACHE") or "~/.cache/lightning_guide").expanduser()


def read_prompts(prompts: Sequence[str] | str) -> list[str]:
    """Return typed `prompts` as they are, or the lines of a text file in UTF-8 that are not blank.

    Raises:
        ValueError: naming the file, if it does not exist, is no text or has no line; or if there is no prompt.
    """
    if not isinstance(prompts, str):
        if not prompts or not all(isinstance(each, str) for each in prompts):
            raise ValueError(f"the prompts are {prompts!r:.100}; expected one text or more, or a text file")
        return list(prompts)
    path = Path(prompts).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(
            f"the file of prompts {prompts} does not exist{did_you_mean(path)}; expected a text file, a prompt a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of prompts {prompts} cannot be read ({error}); expected text in UTF-8") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"the file of prompts {prompts} holds no text; expected one prompt a line")
    return found


def half_precision(tokens: Tensor) -> np.ndarray[Any, Any]:
    """Return `tokens` (P, L, C) in half precision.

    Raises:
        ValueError: if a number is too large, or a token would become zeros, which stand for no token.
    """
    half = tokens.to(torch.float16)
    if not bool(half.isfinite().all()) or bool((token_mask(half) != token_mask(tokens)).any()):
        largest = float(tokens.abs().max())
        raise ValueError(f"the outputs of the text encoders, up to {largest:.3g}, do not fit into half precision")
    return half.numpy()


class Encoders(Protocol):
    """Text encoders, loaded at first use."""

    @property
    def identity(self) -> str:
        """Return a name of what embeddings depend on beside the text."""

    def batches(self, prompts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the embeddings (R, L, C) of `prompts` batch by batch."""

    def free(self) -> None:
        """Drop the encoders from memory."""


class CachedPrompts:
    """Embeddings (P, L, C) of texts, encoded at most once on a machine; rows are read when they are needed.

    `folder` holds one npy file (L, C) for each encoder (`identity`) and text; default: `prompts` in `cache_folder()`.
    Numbers are float16, or float32 if the embeddings are to be `exact`.

    Attributes:
        texts: the prompts.
    """

    def __init__(
        self,
        encoders: Encoders,
        texts: Sequence[str],
        *,
        folder: str | Path | None = None,
        exact: bool = False,
    ) -> None:
        """Choose texts; nothing is encoded or read before it is needed."""
        self.texts, self.exact, self._encoders = list(texts), exact, encoders
        self.folder = Path(folder or cache_folder() / "prompts").expanduser() / encoders.identity

    def __len__(self) -> int:
        """Return P."""
        return len(self.texts)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the embeddings (R, L, C) of `rows` (R,), float32.

        Raises:
            ValueError: naming the file, if one is damaged.
        """
        paths = [self._path(self.texts[row]) for row in rows.tolist()]
        return torch.stack([torch.from_numpy(read_array(path, "a prompt")).to(torch.float32) for path in paths])

    def encode(self) -> CachedPrompts:
        """Encode the texts that have no file, drop the encoders from memory, and return the prompts.

        Raises:
            ValueError: as the encoders.
            OSError: naming the file, if one cannot be written.
        """
        new = list(dict.fromkeys(text for text in self.texts if not self._path(text).is_file()))
        for text, tokens in zip(new, self._rows(new), strict=True):
            with atomic(self._path(text), durable=False) as temporary, temporary.open("wb") as file:
                np.save(file, tokens)
        self._encoders.free()
        return self

    def _rows(self, texts: Sequence[str]) -> Iterator[np.ndarray[Any, Any]]:
        if texts:
            for batch in self._encoders.batches(texts):
                yield from batch.numpy() if self.exact else half_precision(batch)

    def _path(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{'.exact' * self.exact}.npy"
