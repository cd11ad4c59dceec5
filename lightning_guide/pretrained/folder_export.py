"""Folders that diffusers opens: those of a published model with another network in them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_guide.pretrained.diffusers_folder import WEIGHTS, DiffusersFolder
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork, find_class
from lightning_guide.utils.files import atomic

__all__ = ["published_weights", "write_folder"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".onnx")


@torch.no_grad()
def published_weights(network: DiffusersNetwork) -> dict[str, Tensor]:
    """Return the weights of a network of diffusers by its own names, low-rank additions and the like merged."""
    state = {name: each for name, each in network.model.state_dict().items() if ".parametrizations." not in name}
    for name, module in network.model.named_modules():
        for each in getattr(module, "parametrizations", ()):
            state[f"{name}.{each}"] = getattr(module, each)
    return network.family.published(state)


def write_folder(
    network: DiffusersNetwork, source: DiffusersFolder, target: Path, *, dtype: torch.dtype, link: bool = False
) -> Path:
    """Write the folder `source` again, as `target`, with the weights of `network`; return the file of these.

    All other files are copied, or with `link` links to those of `source`; parts of which the source has no weights,
    such as a safety checker that was not downloaded, are left out.

    Raises:
        ValueError: naming the first weight that `source` lacks, has in another shape, or alone.
    """
    weights = published_weights(network)
    _check(network, source, weights)
    part = target / source.part.relative_to(source.folder)
    for path in sorted(source.folder.rglob("*")):
        here = path.relative_to(source.folder)
        replaced = path.parent == source.part and path.name.startswith(WEIGHTS)
        if path.is_dir() or replaced or path.name == "model_index.json" or here.parts[0].startswith("."):
            continue
        (target / here).parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.symlink(path.resolve(), target / here)
        else:
            shutil.copyfile(path, target / here)
    if source.index:
        with atomic(target / "model_index.json") as temporary:
            temporary.write_text(json.dumps(_whole(source.index, target, part.name), indent=2) + "\n")
    part.mkdir(parents=True, exist_ok=True)
    stored = {name: each.detach().to("cpu", dtype, copy=True).contiguous() for name, each in weights.items()}
    with atomic(part / f"{WEIGHTS}.safetensors") as temporary:
        save_file(stored, temporary, {"format": "pt"})
    return part / f"{WEIGHTS}.safetensors"


def _check(network: DiffusersNetwork, source: DiffusersFolder, weights: dict[str, Tensor]) -> None:
    """Refuse a folder of another network."""
    if source.architecture != network.architecture:
        raise ValueError(f"{source.source} holds a {source.architecture}; the model is a {network.architecture}")
    with torch.device("meta"):
        theirs = find_class(network.architecture).from_config(source.config)
    expected = {name: tuple(each.shape) for name, each in theirs.state_dict().items()}
    found = {name: tuple(each.shape) for name, each in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{name} of the model has the shape {found.get(name)}; the {network.architecture} of {source.source} "
                f"has {expected.get(name)}; expected the model that it was made of"
            )


def _whole(index: dict[str, Any], folder: Path, network: str) -> dict[str, Any]:
    """Return the index of a pipeline without the models of which `folder` holds no weights."""

    def is_there(name: str) -> bool:
        files = [path.name for path in (folder / name).iterdir()] if (folder / name).is_dir() else []
        return name == network or "config.json" not in files or any(each.endswith(_WEIGHTS) for each in files)

    return {
        name: value if not isinstance(value, list) or value[0] is None or is_there(name) else [None, None]
        for name, value in index.items()
    }
