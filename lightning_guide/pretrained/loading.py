"""Models of timm and open_clip, with weights from a local file or the library's own download.

Files of weights that users bring: read as tensors alone, with one sentence about what is wrong with them.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

__all__ = ["clip_model", "read_weights", "timm_model"]


def timm_model(name: str, *, weights: str | None = None, pretrained: bool = True, **options: Any) -> Any:
    """The model `name` of timm, frozen, in eval mode.

    It is read with its head: timm tolerates weights of another model as soon as it is to drop the head itself.
    `weights` is a local file, None for timm's own download; without `pretrained` they are random. `options` as in
    `timm.create_model`. Draws nothing from the global generator.

    Raises:
        ValueError: if timm has no such model, or its weights cannot be had.
    """
    import timm  # takes a second, and most runs have no use for it

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), cutoff=0.5)
        raise ValueError(
            f"{name} cannot be loaded: timm has no model {name!r}; names like it: {', '.join(near) or 'none'}"
        )
    if weights is not None:
        if not Path(weights).is_file():
            raise ValueError(f"weights of {name}: there is no file {weights}")
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # whatever hub, file system or checkpoint reader have to say
        raise _refused(name, weights or "timm's download", error, "timm.create_model(name, pretrained=True)") from None
    return model.eval().requires_grad_(False)


def clip_model(name: str, *, weights: str | None) -> Any:
    """The model `name` of open_clip, frozen, in eval mode.

    `weights` is a local file or a name of open_clip's downloads, None for random ones. Draws nothing from the global
    generator.

    Raises:
        ValueError: if open_clip has no such model, or its weights cannot be had.
    """
    import open_clip  # takes seconds, and most runs have no use for it

    if name not in open_clip.list_models():
        near = get_close_matches(name, open_clip.list_models(), cutoff=0.5)
        raise ValueError(f"open_clip has no model {name!r}; names like it: {', '.join(near) or 'none'}")
    known = open_clip.list_pretrained_tags_by_model(name)
    if weights is not None and weights not in known and not Path(weights).is_file():
        raise ValueError(
            f"weights of {name}: there is no file {weights}, nor is it one of open_clip's names: "
            f"{', '.join(known) or 'none for this model'}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(name, pretrained=weights)
    except Exception as error:  # as for timm
        raise _refused(name, str(weights), error, "open_clip.create_model(name, pretrained=...)") from None
    return model.eval().requires_grad_(False)


def _refused(name: str, source: str, error: Exception, call: str) -> ValueError:
    """One sentence for all that loading a model may say."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"weights of {name} cannot be loaded from {source} ({reason}); expected a checkpoint of this model: "
        f"save one where there is a network, `{call}.state_dict()`, and name the file in `weights`"
    )


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
