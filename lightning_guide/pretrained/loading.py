"""Load models of timm and open_clip, folders of the hub, and weights from files, which are read as tensors only."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import parse_json

__all__ = [
    "announce_download",
    "clip_input",
    "clip_model",
    "explain_hub",
    "files_of",
    "find_folder",
    "named_network",
    "read_object",
    "read_tensors",
    "read_weights",
    "timm_input",
    "timm_model",
]


def announce_download(title: str, file: str, *, megabytes: int, place: str) -> None:
    """Say on stderr that torch.hub will download `file`, how large, from where and what to do instead; once a machine.

    Nothing is said if its cache has the file.
    """
    if not Path(torch.hub.get_dir(), "checkpoints", file).is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"{title} downloads {file} ({megabytes} MB) from {place}. To use a local file, name it in `weights`: "
            "--extractor.weights FILE of `score`; extractors without a download are in docs/evaluation.md.",
            file=sys.stderr,
            flush=True,
        )


def find_folder(source: str, wanted: Sequence[str], *, revision: str | None = None) -> Path:
    """Return the folder `source`, or the local copy of OWNER/NAME on the Hugging Face hub, of files like `wanted`.

    Raises:
        ValueError: if there is no such folder, or the name cannot be downloaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if len(Path(source).parts) != 2 or folder.is_absolute() or source.startswith((".", "~")):
        hint = did_you_mean(folder)
        raise ValueError(f"the folder {source} does not exist{hint}; expected one written by diffusers, or OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(wanted)))
    except Exception as error:  # of many types
        raise ValueError(explain_hub(source, error, revision=revision)) from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a folder of diffusers.

    Raises:
        ValueError: naming the file, if it does not exist, is damaged, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a folder written by a pipeline of diffusers")
    content = parse_json(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object, as diffusers writes it")
    return content


def files_of(folder: Path, parts: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return name, size and time of the last change of all files in the subfolders `parts`, which identify a model."""
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return [(name, found.st_size, found.st_mtime_ns) for name, found in stats]


def explain_hub(name: str, error: Exception, *, revision: str | None = None) -> str:
    """Say in one sentence why `name` cannot be read from the Hugging Face hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at https://huggingface.co/{name} and log in by `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hugging Face hub has no {name}, or it is private; expected a folder, or a name there as OWNER/NAME"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} on the Hugging Face hub has no revision {revision}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | OSError):
        return (
            f"{name} is neither a folder nor can it be read from the Hugging Face hub: the cache has no copy, and the "
            f"hub cannot be reached ({type(error).__name__}); without a network give a folder"
        )
    reason = " ".join(str(error).split())[:300]
    return f"{name} is neither a folder nor can it be read from the Hugging Face hub: {reason}"


def timm_model(name: str, *, weights: str | None = None, pretrained: bool = True, **options: Any) -> Any:
    """Load the timm model `name` with its head, frozen and in eval mode.

    Without the head timm would accept weights of other models. `weights` is a local file, None for timm's own download;
    without `pretrained` the weights are random. `options` as in `timm.create_model`. The global random state is
    unchanged.

    Raises:
        ValueError: if timm has no such model, or its weights cannot be loaded.
    """
    import timm  # takes a second, and most runs do not need it

    if not timm.is_model(name):
        similar = get_close_matches(name, timm.list_models(), cutoff=0.5)
        raise ValueError(
            f"{name} cannot be loaded: timm has no model {name!r}; names like it: {', '.join(similar) or 'none'}"
        )
    if weights is not None:
        weights = os.path.expanduser(weights)
        if not Path(weights).is_file():
            raise ValueError(f"weights of {name}: there is no file {weights}{did_you_mean(weights)}")
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # raised by the hub, the file system or the checkpoint reader
        raise _loading_error(
            name, weights or "timm's download", error, "timm.create_model(name, pretrained=True)"
        ) from None
    return model.eval().requires_grad_(False)


def clip_model(name: str, *, weights: str | None) -> Any:
    """Load the open_clip model `name`, frozen and in eval mode.

    `weights` is a local file or a tag of open_clip's downloads, None for random weights. With a tag, the activations
    are those that the weights were trained with; a local file does not say so, and OpenAI's weights in one need a model
    whose name ends in "-quickgelu". The global random state is unchanged.

    Raises:
        ValueError: if open_clip has no such model, or its weights cannot be loaded.
    """
    import open_clip  # takes seconds, and most runs do not need it

    if name not in open_clip.list_models():
        similar = get_close_matches(name, open_clip.list_models(), cutoff=0.5)
        raise ValueError(f"open_clip has no model {name!r}; names like it: {', '.join(similar) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    weights = None if weights is None else os.path.expanduser(weights)
    if weights is not None and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"weights of {name}: there is no file {weights}{did_you_mean(weights)}, nor is it one of open_clip's "
            f"names: {', '.join(tags) or 'none for this model'}"
        )
    # by itself open_clip builds OpenAI's models with another activation than that of their weights, and warns
    quick_gelu = weights in tags and bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu"))
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(name, pretrained=weights, force_quick_gelu=quick_gelu)
    except Exception as error:  # as for timm
        raise _loading_error(name, str(weights), error, "open_clip.create_model(name, pretrained=...)") from None
    return model.eval().requires_grad_(False)


def timm_input(model: Any) -> dict[str, Any]:
    """Return size (height, width), mean, std and channels of the input of a timm model, for `preprocess_image`."""
    from timm.data import resolve_data_config  # takes a second, and most runs do not need it

    config = resolve_data_config(model=model)
    channels, *size = config["input_size"]
    return {"size": size, "mean": config["mean"], "std": config["std"], "channels": channels}


def clip_input(model: Any) -> dict[str, Any]:
    """Return size, mean, std and channels of the input of an open_clip model, for `preprocess_image`."""
    visual, size = model.visual, model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    return {"size": size, "mean": visual.image_mean, "std": visual.image_std, "channels": 3}


def _loading_error(name: str, source: str, error: Exception, call: str) -> ValueError:
    """Return a one-line error for any failure of loading a model."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"weights of {name} cannot be loaded from {source} ({reason}); expected a checkpoint of this model: "
        f"save one on a machine with internet access, `{call}.state_dict()`, and name the file in `weights`"
    )


def _check_zip(path: str) -> None:
    """Compare the checksums of a file of torch, a zip archive; torch itself does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} in it is wrong")


def read_weights(module: nn.Module, path: str) -> None:
    """Load the file `path` (safetensors, or torch without pickles) into `module`.

    Raises:
        ValueError: if the file holds anything but the tensors of this module.
    """
    name = type(module).__name__
    state = read_tensors(path, of=name)
    try:
        module.load_state_dict(state)
    except Exception as error:  # of many types
        raise _reading_error(name, path, error) from None


def read_tensors(path: str, *, of: str) -> Any:
    """Return what the file `path` holds (safetensors, or torch without pickles), tensors by name if it is a state dict.

    Raises:
        ValueError: naming the file and what it is `of`, if it is missing or damaged.
    """
    path = os.path.expanduser(path)
    if not Path(path).is_file():
        raise ValueError(f"weights of {of}: there is no file {path}{did_you_mean(path)}")
    try:
        _check_zip(path)
        if path.endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types
        raise _reading_error(of, path, error) from None


def named_network(name: str, weights: str | None, options: Mapping[str, Any]) -> nn.Module:
    """Return `name`(**options), "package.module.Class" or a function, with the weights of a file, None: as it is made.

    Raises:
        ValueError: if there is no such class, it is no `nn.Module`, or the file does not hold its state dict.
    """
    module, _, attribute = name.rpartition(".")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no network {name!r}: {error}; expected package.module.Class") from None
    try:
        network = make(**options)
    except Exception as error:  # of many types, such as those of a download
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} cannot be made with {dict(options)} ({type(error).__name__}: {reason})") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returns a {type(network).__name__}; expected an nn.Module")
    if weights is not None:
        read_weights(network, weights)
    return network


def _reading_error(name: str, path: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(f"weights of {name} cannot be read from {path} ({reason}); expected its state dict")
