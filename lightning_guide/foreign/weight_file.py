"""Files of weights that users bring: read as tensors alone, with one sentence about what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

__all__ = ["read_weights"]


def read_weights(module: nn.Module, path: str) -> None:
    """Puts the weights in the file `path` (safetensors, or torch without pickles) into `module`.

    Raises:
        ValueError: naming the file, if it holds anything but the tensors of this module.
    """
    name = type(module).__name__
    if not Path(path).is_file():
        raise ValueError(f"weights of {name}: there is no file {path}")
    try:
        state = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        module.load_state_dict(state)
    except Exception as error:  # whatever readers have to say of a file that is none of theirs
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"weights of {name} cannot be read from {path} ({reason}); expected its state dict") from None
