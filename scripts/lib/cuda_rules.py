"""What CUDA does with one operation of torch: whether it is a kernel, refuses its devices, or lets the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEVICE", "Operation", "leaves"]

DEVICE = "emu:0"
"""Name of the device that takes the place of ``cuda:0``."""

READS = {"_local_scalar_dense", "allclose", "equal", "is_nonzero", "_linalg_check_errors"}
"""Operations that return a number or a decision to the host."""

CHECKED = {"_linalg_eigh", "_linalg_svd", "linalg_eig", "_linalg_eigvals"}
"""Operations that read inside of them whether they succeeded."""

FREE = {"_unsafe_view", "detach", "alias", "lift_fresh", "set_", "resize_", "record_stream"}
FREE |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations without a kernel that are no views either."""

COPIES = {"copy_", "_foreach_copy_"}
"""Operations that may write from one device to the other."""

NUMBERS = ("_foreach", "fill", "masked_fill", "index_fill")
"""Begin of operations that are not pointwise and accept a number on the host."""


class Operation:
    """An operation with its arguments.

    Attributes:
        name: that of torch, without overload.
        on_device: whether a tensor on the device takes part.
        creates: whether it makes a tensor on the device that was named.
        stays: whether its result is on the device.
        generators: those that it draws from.
    """

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func.overloadpacket.__name__
        values = list(leaves([*args, *kwargs.values()]))
        tensors = [x for x in values if isinstance(x, Tensor)]
        self.on_device = any(map(_is_there, tensors))
        self._here = [x for x in tensors if not _is_there(x)]
        self.generators = [x for x in values if isinstance(x, torch._C.Generator)]
        target = kwargs.get("device")
        self._moves = target is not None
        self.creates = self._moves and str(target).startswith("emu")
        self.stays = self.creates if self._moves else self.on_device
        indexes = "index" in self.name and isinstance(args[1], list | tuple)
        self._indices = [x for x in args[1] if x is not None] if indexes else []

    @property
    def kernels(self) -> int:
        """Number of kernels on the device: one if it computes something, more for lists of tensors."""
        if self.func.is_view or self.name in FREE or self.name in READS or self._copied():
            return 0
        if not self.name.startswith(("_foreach", "_fused")):
            return 1
        lists = [x for x in self.args if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
        return _launches(lists)

    def _copied(self) -> list[Tensor]:
        """Return the tensors of copies from host to device or back; new memory is none of them."""
        if self.name == "_to_copy":
            return [self.args[0]] if self._moves and self.creates != self.on_device else []
        if self.name not in COPIES:
            return []
        to, source = (x if isinstance(x, list | tuple) else [x] for x in self.args[:2])
        pairs = zip(to, source, strict=True)
        return [x for pair in pairs if _is_there(pair[0]) != _is_there(pair[1]) for x in pair]

    def waits(self, is_pinned: Callable[[Tensor], bool]) -> bool:
        """Return whether the host waits here until the device has done all it was given."""
        if self.name in READS or self.name in CHECKED:
            return True
        if copied := self._copied():
            blocking = not (self.kwargs.get("non_blocking") or self.args[2:3] == (True,))
            return blocking or not all(is_pinned(x) for x in copied if not _is_there(x))
        if self._indices:
            masked = any(index.dtype in (torch.bool, torch.uint8) for index in self._indices)
            filled = len(self.args) > 2 and self.args[2].numel() == 1  # with one number it is a masked_fill
            return (masked and not filled) or not all(map(_is_there, self._indices))
        if self.name == "repeat_interleave":
            return self.kwargs.get("output_size") is None
        return torch.Tag.dynamic_output_shape in self.func.tags

    def refuse_mixed_devices(self) -> None:
        """Refuse tensors and generators of the host, but for what CUDA accepts: one number, and indices.

        Raises:
            RuntimeError: naming the operation and the shapes on the host.
        """
        place = DEVICE if self.on_device or self.creates else "cpu"
        for generator in self.generators:
            if generator.device != torch.device(place):
                raise RuntimeError(f"{self.name}: expected a generator on '{place}', but found '{generator.device}'")
        here = [x for x in self._here if not any(x is index for index in self._indices)]
        if not here or not self.on_device or self.name in COPIES:
            return
        accepts = torch.Tag.pointwise in self.func.tags or self.name.startswith(NUMBERS) or bool(self._indices)
        written = self.args[0] if self.func._schema.is_mutable else None
        if not accepts or len(here) > 1 or here[0].ndim or here[0] is written:
            shapes = [tuple(x.shape) for x in here]
            raise RuntimeError(f"{self.name}: expected all tensors on '{DEVICE}', but found {shapes} on 'cpu'")


def _launches(lists: list[Any]) -> int:
    """Return the kernels for lists of tensors: one for each tensor, or shared ones if shapes and strides agree.

    A shared kernel takes at most 110, 64, 48, 36 or 30 tensors for 1 to 5 lists, and 320 chunks of 65,536 elements
    (`multi_tensor_apply` of torch).
    """
    layouts = [[(x.shape, x.stride()) for x in tensors] for tensors in lists if tensors[0].ndim or tensors is lists[0]]
    if any(layout != layouts[0] for layout in layouts):
        return len(lists[0])
    most, launches, tensors, chunks = (110, 64, 48, 36, 30)[min(len(layouts), 5) - 1], 1, 0, 0
    for x in lists[0]:
        remaining = -(-x.numel() // 65536)
        if tensors == most:
            launches, tensors, chunks = launches + 1, 0, 0
        tensors, chunks = tensors + 1, chunks + remaining
        if chunks > 320:
            launches, tensors, chunks = launches + (chunks - 1) // 320, 1, (chunks - 1) % 320 + 1
    return launches


def leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield `values`, those of lists and tuples one by one."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from leaves(value)
        else:
            yield value


def _is_there(value: Tensor | torch.Generator) -> bool:
    return value.device.type == "emu"
