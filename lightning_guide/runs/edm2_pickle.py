"""Reader of published EDM and EDM2 snapshots, pickles that carry source code, without executing anything.

Names in the pickle map to inert placeholders (`utils.safe_pickle`). Source text in the file is ignored.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.utils.safe_pickle import Function, Items, array_names, read_inert, unwrap_arrays

__all__ = ["Stored", "read_edm2_pickle", "tensors_of"]


@dataclass
class Stored:
    """Object of the file: the name of its class and its attributes, without behavior."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        """Take attributes over as data."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the state of a {self.class_name} is a {type(state).__name__}, not a dict")
        self.state = unwrap_arrays(state, depth=1)


class _Container(Stored):
    """A container of torch; pickle makes it without arguments."""

    def __init__(self) -> None:
        super().__init__("container")


def _persistent(meta: Any) -> Stored:
    """The object that `meta` describes; its source text is left alone."""
    if not isinstance(meta, Mapping) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise pickle.UnpicklingError("it holds a persistent object of an unknown kind")
    if meta.get("version") != 6:
        raise pickle.UnpicklingError(f"it holds a persistent object of version {meta.get('version')}, expected 6")
    return Stored(str(meta.get("class_name")), unwrap_arrays(meta["state"], depth=1))


def _storage(data: Any) -> Any:
    """A storage, by torch's reader that loads nothing but tensors."""
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]}" if asked else "is damaged"
        raise pickle.UnpicklingError(f"a storage in it {what}; nothing in the file was run") from None


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of `storage`; torch refuses one that reaches beyond its end."""
    whole = torch.empty(0, dtype=storage.dtype).set_(storage)
    return whole.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("dnnlib.util", "EasyDict"): Items,
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch.storage", "_load_from_bytes"): Function(_storage),
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_persistent),
}


def read_edm2_pickle(path: str | Path, *, kind: str = "EDM2 snapshot") -> dict[str, Any]:
    """The content of a published snapshot, objects as `Stored`: `ema`, `encoder`, `loss_fn`, `dataset_kwargs`.

    `kind` names the expected kind of file in errors.

    Raises:
        ValueError: naming the file and what it asks for, if that is more than a snapshot needs, if it is cut off, or if
            it holds no network.
    """
    content = read_inert(path, _KNOWN | array_names(path), kind=kind)
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Stored):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds no {kind}: expected a dict with the network under 'ema', found {found}")
    return content


def tensors_of(stored: Stored, prefix: str = "", *, seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of all parameters and buffers of a stored network, depth first.

    `seen` are the modules that were visited, by their id.

    Raises:
        ValueError: if a parameter is no tensor, or a submodule no stored object or one that was visited.
    """
    seen = {id(stored)} if seen is None else seen
    for kind in ("_parameters", "_buffers"):
        for name, value in stored.state.get(kind, {}).items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{prefix}{name} is a {type(value).__name__}; expected a tensor")
            yield f"{prefix}{name}", value
    for name, part in stored.state.get("_modules", {}).items():
        if part is None:
            continue
        if not isinstance(part, Stored) or id(part) in seen:
            found = "a module that occurs twice" if isinstance(part, Stored) else f"a {type(part).__name__}"
            raise ValueError(f"{prefix}{name} is {found}; expected a stored module")
        seen.add(id(part))
        yield from tensors_of(part, f"{prefix}{name}.", seen=seen)
