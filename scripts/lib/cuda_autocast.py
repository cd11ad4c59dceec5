"""Autocast of the emulated device: the operations that CUDA computes in 16 bits, or in 32.

Which operations have one is asked of torch, what it is follows https://docs.pytorch.org/docs/stable/amp.html. Weights
are cast in each operation, where CUDA keeps a cast weight until the context ends; kernels are counted without autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["register_autocast"]

NARROW = (
    "_convolution _scaled_dot_product_flash_attention _thnn_fused_gru_cell _thnn_fused_lstm_cell addbmm addmm addmv "
    "addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d "
    "convolution einsum gru_cell linalg_multi_dot linalg_vecdot linear lstm_cell matmul mm mv prelu rnn_relu_cell "
    "rnn_tanh_cell scaled_dot_product_attention"
).split()
"""Operations in 16 bits."""

WIDEST = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot vdot".split()
"""Operations in the widest type of their arguments; all others are in float32."""

KEY = "AutocastPrivateUse1"


def register_autocast(device_type: str) -> list[torch.library.Library]:
    """Give `device_type`, a private backend of torch, CUDA's autocast; return what must be kept."""
    rest, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, KEY)
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA"):
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(operation, _autocast(operation, packet, device_type), KEY)
    return [rest, library]


def _autocast(operation: Any, name: str, device_type: str) -> Any:
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.__members__[KEY])

    def is_cast(value: Any) -> bool:
        is_float = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return is_float and value.device.type == device_type

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([cast(each, dtype) for each in value])
        return value.to(dtype) if is_cast(value) else value

    def run(*args: Any, **kwargs: Any) -> Any:
        narrow = torch.get_autocast_dtype(device_type)
        if name in WIDEST:
            is_narrow = all(x.dtype == narrow for x in (*args, *kwargs.values()) if is_cast(x))
        else:
            is_narrow = name in NARROW
        dtype = narrow if is_narrow else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(without):
            return operation(*cast(args, dtype), **{key: cast(each, dtype) for key, each in kwargs.items()})

    return run
