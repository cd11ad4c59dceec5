"""A second device without any hardware: tensors that hold their values on the CPU and say they are on ``emu:0``.

With it, a machine without a GPU shows what would fail or be slow on one: operations between two devices, generators of
the wrong device, arrays of NumPy made of device tensors, and each point at which the host waits for the device.

    with EmulatedDevice() as device:
        model = model.to(DEVICE)
        y = model(x.to(DEVICE))
        print(device.kernels, device.waits)

The rules are those of CUDA: a copy from the host waits unless its memory is pinned and it is not blocking; a CPU tensor
of one number takes part in pointwise operations; a mask as index waits for the number of its True.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from scripts.lib import cuda_rules
from scripts.lib.cuda_autocast import register_autocast
from scripts.lib.cuda_rules import Operation, leaves

__all__ = ["DEVICE", "EmulatedDevice", "EmulatedTensor", "Wait"]

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
_ACTIVE: list[EmulatedDevice] = []  # innermost last; torch asks for devices without saying which


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device type; there is a device inside of ``with EmulatedDevice()`` alone."""

    def is_available(self) -> bool:
        return bool(_ACTIVE)

    def device_count(self) -> int:
        return len(_ACTIVE[:1])

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the types of autocast."""
        return [torch.bfloat16, torch.float16]


class _Hooks(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return bool(_ACTIVE)


backend_registration._setup_privateuseone_for_python_backend("emu", _Backend(), _Hooks())  # once in a process
DEVICE = torch.device(cuda_rules.DEVICE)
_KERNELS = torch.library.Library("aten", "IMPL")  # torch.tensor(..., device="emu") passes by every mode
_AUTOCAST = register_autocast("emu")


@torch.library.impl(_KERNELS, "empty_strided", "PrivateUse1")
def _empty_strided(size: Any, stride: Any, **options: Any) -> Tensor:
    numbers = torch.empty_strided(size, stride, dtype=options.get("dtype"))
    return EmulatedTensor(numbers, _ACTIVE[-1])


@torch.library.impl(_KERNELS, "_copy_from", "PrivateUse1")
def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    return _ACTIVE[-1].run(torch.ops.aten.copy_.default, (to, source, non_blocking), {})


# by the address of the generator in C++, which torch wraps anew for each operation
_GENERATORS: weakref.WeakValueDictionary[int, EmulatedGenerator] = weakref.WeakValueDictionary()


class EmulatedGenerator(torch._C.Generator):
    """What `torch.Generator` is inside of the context: ``Generator(DEVICE)`` draws on the CPU, for the device alone."""

    place: torch.device

    def __new__(cls, device: torch.device | str | int = CPU) -> EmulatedGenerator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        _GENERATORS[made._cdata] = made  # type: ignore[attr-defined]
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it draws."""
        return self.place


class Wait(NamedTuple):
    """One point at which the host waits for the device: the operation of torch, and the line of code that called it."""

    operation: str
    place: str


class EmulatedTensor(Tensor):
    """A tensor on `DEVICE` with its values in the CPU tensor `numbers`; `owner` runs and counts its operations."""

    numbers: Tensor
    owner: EmulatedDevice

    @staticmethod
    def __new__(cls, numbers: Tensor, owner: EmulatedDevice) -> EmulatedTensor:
        with torch.inference_mode(False):  # a view of a tensor from outside could not be made there
            made = Tensor._make_wrapper_subclass(
                cls,
                numbers.shape,
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                device=DEVICE,
            )
        made.numbers, made.owner = numbers, owner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation on the device of the first emulated tensor, in threads without its mode, too."""
        given = kwargs or {}
        owner = next(x.owner for x in leaves([*args, *given.values()]) if isinstance(x, EmulatedTensor))
        return owner.run(func, args, given)

    def data_ptr(self) -> int:
        """Return the address of the numbers."""
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        """Return the numbers, which the host waits for."""
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else super().__format__(spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmulatedTensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if hasattr(self, "_is_param"):
                copy._is_param = True
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Write the numbers into files as a tensor of the CPU."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        """Return an array of a copy on the host, or refuse without `force`.

        Raises:
            TypeError: as for every device but the CPU.
        """
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()


class EmulatedDevice(TorchDispatchMode):
    """The device as a context: it runs the operations of its tensors on the CPU and records what a GPU would do.

    Attributes:
        kernels: number of operations that compute something; views and memory are free.
        waits: every point at which the host waited, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.waits: list[Wait] = []
        self._pinned: set[StorageWeakRef] = set()

    def __enter__(self) -> EmulatedDevice:
        _ACTIVE.append(self)
        torch.Generator = EmulatedGenerator  # type: ignore[misc, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _ACTIVE.pop()
        if not _ACTIVE:
            torch.Generator = torch._C.Generator  # type: ignore[misc]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def forget(self) -> None:
        """Begin to count anew."""
        self.kernels = 0
        self.waits.clear()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the numbers of its arguments.

        Raises:
            RuntimeError: where CUDA would, if tensors or a generator are on another device.
        """
        call = Operation(func, args, kwargs)
        call.generators = [_GENERATORS.get(each._cdata, each) for each in call.generators]  # type: ignore[attr-defined]
        if call.name in ("is_pinned", "_pin_memory") or call.kwargs.get("pin_memory"):
            return self._pin(call)
        call.refuse_mixed_devices()
        if not call.on_device and not call.creates:
            return func(*args, **kwargs)
        if _is_composite(func):
            with self:  # in inference mode torch leaves it to us to take an operation apart
                return func.decompose(*args, **kwargs)
        if call.waits(self._is_pinned):
            self.waits.append(Wait(call.name, _place()))
        self.kernels += call.kernels
        kwargs_on_cpu = {key: CPU if key == "device" and value is not None else value for key, value in kwargs.items()}
        result = func(*_map(_numbers, args), **{key: _map(_numbers, each) for key, each in kwargs_on_cpu.items()})
        if call.stays:
            result = _map(lambda x: EmulatedTensor(x, self) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(func, args, kwargs, result)

    def _pin(self, call: Operation) -> Any:
        """Answer whether memory is pinned, or return new pinned memory."""
        if call.on_device:
            if call.name == "is_pinned":
                return False
            raise RuntimeError("cannot pin memory of 'emu:0'; only tensors of the CPU can be pinned")
        if call.name == "is_pinned":
            return self._is_pinned(call.args[0])
        new = call.name != "_pin_memory"
        pinned = call.func(*call.args, **call.kwargs | {"pin_memory": False}) if new else call.args[0].clone()
        self._pinned.add(StorageWeakRef(pinned.untyped_storage()))
        return pinned

    def _is_pinned(self, tensor: Tensor) -> bool:
        return StorageWeakRef(tensor.untyped_storage()) in self._pinned


def _place() -> str:
    """Return the innermost line of this repository that is being run, as file:line."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and not file.is_relative_to(ROOT / ".venv") and file.name != Path(__file__).name:
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@functools.cache
def _is_composite(func: Any) -> bool:
    """Return whether the operation consists of others on every device; some have kernels of their own nevertheless."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(func.name(), "CompositeImplicitAutograd") and not has_kernel(func.name(), "CPU")


def _map(f: Callable[[Any], Any], value: Any) -> Any:
    return type(value)([_map(f, each) for each in value]) if isinstance(value, list | tuple) else f(value)


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, EmulatedTensor) else value
