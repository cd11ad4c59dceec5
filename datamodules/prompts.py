"""Prompts out of a file: embeddings that samples are to be drawn under."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lightning_guide.conditions import masked

__all__ = ["read_prompts"]


def read_prompts(path: str, channels: int) -> Tensor:
    """Embeddings (P, L, channels), float32, of a file: npy with zeros for padding, or npz with `tokens` and `mask`.

    Raises:
        ValueError: naming the file, if it is missing, holds something else, or what `masked` refuses.
    """
    if not Path(path).is_file():
        raise ValueError(f"the file of prompts {path} does not exist; expected npy or npz of (P, L, {channels})")
    try:
        loaded = np.load(path, allow_pickle=False)
        archive = isinstance(loaded, np.lib.npyio.NpzFile)
        tokens = torch.from_numpy(np.asarray(loaded["tokens"] if archive else loaded))
        mask = torch.from_numpy(np.asarray(loaded["mask"])) if archive and "mask" in loaded else None
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"the file of prompts {path} cannot be read: {error}") from None
    if tokens.ndim != 3 or tokens.shape[2] != channels or not len(tokens):
        raise ValueError(f"the prompts in {path} have shape {tuple(tokens.shape)}; expected (P, L, {channels}), P >= 1")
    tokens = tokens.to(torch.float32)
    try:
        return masked(tokens, (tokens != 0).any(dim=-1) if mask is None else mask)
    except ValueError as error:
        raise ValueError(f"the prompts in {path}: {error}") from None
