"""A file in the format of published EDM2 snapshots, to be damaged."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["write_edm2_pickle"]

_MODULE, _FUNCTION = "torch_utils.persistence", "_reconstruct_persistent_obj"


class _Persistent:
    """An object that names the function of the published code that would build it."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name}
        self.meta["state"] = state

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr(sys.modules[_MODULE], _FUNCTION), (self.meta,)


def write_edm2_pickle(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write `tensors` as the buffers of one network, and an encoder whose state holds arrays and numbers of numpy."""

    def reconstruct(meta: Any) -> Any:
        raise AssertionError("the code of the file was called")

    reconstruct.__module__, reconstruct.__name__, reconstruct.__qualname__ = _MODULE, _FUNCTION, _FUNCTION
    persistence = types.ModuleType(_MODULE)
    setattr(persistence, _FUNCTION, reconstruct)
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), _MODULE: persistence}
    try:
        buffers = OrderedDict((name.replace(".", "_"), tensor) for name, tensor in tensors.items())
        state = {"scale": np.arange(4.0, dtype=np.float32), "sigma_data": np.float64(0.5)}
        content = {"ema": _Persistent("Network", {"_buffers": buffers}), "encoder": _Persistent("Encoder", state)}
        path.write_bytes(pickle.dumps(content))
    finally:
        del sys.modules["torch_utils"], sys.modules[_MODULE]
    return path
