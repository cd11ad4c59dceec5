"""Pickles as the published classes of EDM and EDM2 write themselves."""

from __future__ import annotations

import contextlib
import sys
import types
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Written", "published_modules", "tree"]


class Written:
    """An object as the published classes write themselves: one dict, handed to a function of theirs."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.attributes = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('the source text was run')",
            "class_name": self.class_name,
            "state": self.attributes,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def published_modules() -> Iterator[None]:
    """The modules that the writer of such a file has, alive only while it is written."""

    class EasyDict(dict):
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    def reconstruct(meta: Any) -> Any:
        raise AssertionError("the importer called the writer's code")

    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    util = types.ModuleType("dnnlib.util")
    persistence = types.ModuleType("torch_utils.persistence")
    util.EasyDict, persistence._reconstruct_persistent_obj = EasyDict, reconstruct  # type: ignore[attr-defined]
    parts = {"dnnlib": types.ModuleType("dnnlib"), "torch_utils": types.ModuleType("torch_utils")}
    parts |= {"dnnlib.util": util, "torch_utils.persistence": persistence}
    sys.modules |= parts
    try:
        yield
    finally:
        for name in parts:
            del sys.modules[name]


def tree(tensors: dict[str, Tensor], *, containers: Collection[str] = ("unet.enc.", "unet.dec.")) -> Written:
    """Published names as nested modules, of which some are containers of torch."""

    def module(prefix: str, class_name: str) -> Any:
        inside = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        own = {name: value for name, value in inside.items() if "." not in name}
        buffers = OrderedDict((n, v) for n, v in own.items() if not isinstance(v, nn.Parameter))
        parameters = OrderedDict((n, v) for n, v in own.items() if isinstance(v, nn.Parameter))
        children = dict.fromkeys(name.split(".")[0] for name in inside if "." in name)
        modules = OrderedDict((child, module(f"{prefix}{child}.", "Block")) for child in children)
        if prefix in containers:
            container = nn.ModuleDict()
            container.__dict__["_modules"] = modules
            return container
        return Written(class_name, training=False, _parameters=parameters, _buffers=buffers, _modules=modules)

    return module("", "Precond")
