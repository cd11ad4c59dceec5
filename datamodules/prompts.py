"""Files of embeddings that condition samples, read row by row: 30,000 prompts of SD3 are 82 GB in half precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from lightning_guide.conditioning import mask_tokens
from lightning_guide.utils.arrays import as_numbers, read_array
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import parse_json, read_numbers

__all__ = ["PromptFile"]


class PromptFile:
    """Embeddings (P, L, C) in a file: npy with zeros for padding, or npz with `tokens` and `mask`.

    The tokens of an npy file of numbers in the machine's byte order are mapped into memory and stay in their precision;
    rows are converted and checked when they are read. Smaller files are checked at once.

    Attributes:
        texts: the prompts of OUT.json beside OUT.npy (the command `prompts`); None without this file.
    """

    CHECKED = 2**26  # bytes of the tokens up to which all rows are checked when the file is opened

    def __init__(self, path: str, channels: int | None = None) -> None:
        """Open `path`; `channels` is C, None for any.

        Raises:
            ValueError: naming the file, if it is missing, damaged, holds something else, or `mask_tokens` refuses it.
        """
        path = os.path.expanduser(path)
        self.path, expected = path, f"(P, L, {channels or 'C'})"
        if not Path(path).is_file():
            hint = did_you_mean(path)
            raise ValueError(f"the file of prompts {path} does not exist{hint}; expected npy or npz of {expected}")
        try:
            self.tokens, self.mask = _open(path)
        except ValueError as error:
            raise ValueError(f"the file of prompts {path} cannot be read: {error}") from None
        self.shape = tuple(self.tokens.shape)
        if len(self.shape) != 3 or self.shape[2] != (channels or self.shape[2]) or not self.shape[0]:
            raise ValueError(f"the prompts in {path} have shape {self.shape}; expected {expected}, P >= 1")
        if self.mask is not None and self.mask.shape != self.shape[:2]:
            raise ValueError(f"the mask in {path} has shape {self.mask.shape}; expected {self.shape[:2]}")
        self.texts = _texts(Path(path).with_suffix(".json"), len(self))
        if self.tokens.nbytes <= self.CHECKED:
            self[torch.arange(len(self))]

    def __len__(self) -> int:
        """Return P."""
        return int(self.shape[0])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the embeddings (R, L, C) of `rows` (R,), float32.

        Raises:
            ValueError: naming the file, if `mask_tokens` refuses them.
        """
        index = rows.cpu().numpy()
        tokens = torch.from_numpy(np.ascontiguousarray(self.tokens[index])).to(torch.float32)
        mask = (tokens != 0).any(dim=-1) if self.mask is None else torch.from_numpy(self.mask[index])
        try:
            return mask_tokens(tokens, mask)
        except ValueError as error:
            raise ValueError(f"the prompts in {self.path}: {error}") from None


def _texts(path: Path, count: int) -> list[str] | None:
    """Return the prompts in a JSON file; None if there is none, or it describes something else."""
    content = parse_json(path.read_bytes(), path) if path.is_file() else None
    texts = content.get("prompts") if isinstance(content, dict) else None
    if texts is not None and (not isinstance(texts, list) or len(texts) != count):
        raise ValueError(f"{path} does not describe the {count} prompts in its folder; encode them again")
    return None if texts is None else [str(each) for each in texts]


def _open(path: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Return tokens and mask, None without one."""
    if is_zipfile(path):
        arrays = read_numbers(path, what="prompts")
        if "tokens" not in arrays:
            raise ValueError(f"it holds no array 'tokens'; found {sorted(arrays)}")
        return as_numbers(arrays["tokens"]), as_numbers(arrays["mask"]) if "mask" in arrays else None
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # of many types, and with `read_array`'s sentence below
        mapped = None
    if isinstance(mapped, np.memmap) and mapped.ndim and mapped.dtype.kind == "f" and mapped.dtype.isnative:
        return mapped, None
    return read_array(path, "prompts"), None
