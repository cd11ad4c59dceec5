"""Reference data of energies: given as numbers, or as a file of NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory

__all__ = ["stored", "stored_for"]


def stored(data: str | Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """`data` as (N, *) of the shape of the samples `like` (B, *), its dtype and device; one example may lack the N.

    A string is the path of a .npy file with clean examples in the form that the denoiser sees.

    Raises:
        ValueError: if the file does not exist, is none of NumPy's, or the examples have another shape.
    """
    examples = _read(data) if isinstance(data, str) else torch.as_tensor(data)
    shape = tuple(like.shape[1:])
    if tuple(examples.shape) == shape:
        examples = examples[None]
    if tuple(examples.shape[1:]) != shape:
        where = f" in {data}" if isinstance(data, str) else ""
        raise ValueError(f"reference examples{where} have shape {tuple(examples.shape)}; expected (N, {shape})")
    return examples.to(like)


def stored_for(data: str | Sequence[float] | Tensor, trajectory: Trajectory) -> Tensor:
    """One example for each sample of `trajectory` (B, *): example i for sample i, modulo their number.

    Raises:
        ValueError: as `stored`.
    """
    examples = stored(data, trajectory.x)
    numbers = [index % len(examples) for index in trajectory.seeds.indices]
    return examples[torch.tensor(numbers, device=examples.device)]


@lru_cache(maxsize=8)
def _read(path: str) -> Tensor:
    if not Path(path).is_file():
        raise ValueError(f"reference examples: there is no file {path}; expected a .npy file of clean examples")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"reference examples: {path} is no .npy file of numbers ({error})") from None
