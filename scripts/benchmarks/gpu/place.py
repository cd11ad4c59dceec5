"""Where the checks run, at which size, and the rows that they yield."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from lightning_guide.compiled import Call, compiled_call, graphed_call

__all__ = [
    "FULL",
    "TINY",
    "NotRunError",
    "Place",
    "Row",
    "Size",
    "at_most",
    "float32_as",
    "holds",
    "measured",
    "seconds",
    "skipped",
]


class NotRunError(Exception):
    """A check, or the rest of one, cannot be made here; the message says what it needs."""


@dataclass(frozen=True)
class Row:
    """One measurement; `passed` is None if nothing is expected of it, or if it was not made."""

    name: str
    value: str
    expected: str = ""
    passed: bool | None = None


def measured(name: str, value: str) -> Row:
    """Return a number of which nothing is expected."""
    return Row(name, value)


def at_most(name: str, value: float, limit: float) -> Row:
    """Return whether `value` is at most `limit`; a value that is not finite is not."""
    return Row(name, f"{value:.2g}", f"at most {limit:g}", value <= limit)


def holds(name: str, value: str, expected: str, passed: bool) -> Row:
    """Return whether something holds."""
    return Row(name, value, expected, passed)


def skipped(name: str, needs: str) -> Row:
    """Return that a measurement was not made."""
    return Row(name, f"not run: {needs}")


@dataclass(frozen=True)
class Size:
    """Size of the checks.

    Attributes:
        channels: of the EDM2 network's first level.
        levels: of that network, with multipliers 1, 2, ...
        side: height and width of the images.
        batch: images in a training step, and samples.
        steps: training steps of each precision.
        rounds: of timed calls.
        matmul: rows and columns of the matrices whose product gives the peak.
        guidances: those compared with the CPU; empty: all.
    """

    channels: int
    levels: int
    side: int
    batch: int
    steps: int
    rounds: int
    matmul: int
    guidances: tuple[str, ...] = ()


FULL = Size(channels=128, levels=4, side=32, batch=64, steps=60, rounds=10, matmul=8192)
TINY = Size(
    channels=8, levels=1, side=8, batch=2, steps=8, rounds=2, matmul=64, guidances=("cfg", "pag", "autoguidance")
)


@dataclass(frozen=True)
class Place:
    """The device of the checks.

    Attributes:
        device: of all models.
        calls: ways of calling compiled models there, by name; those that are missing are not run.
    """

    device: torch.device
    calls: dict[str, Callable[[], Call]]

    @classmethod
    def of(cls, device: str) -> Place:
        """Return the place of a device's name.

        Raises:
            ValueError: if there is no such device here.
        """
        found = torch.device(device)
        if found.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError("there is no GPU of CUDA here; expected one, or --device cpu to try the checks")
            return cls(found, {"compiled": compiled_call, "graphs": graphed_call})
        return cls(found, {"compiled": compiled_call})

    @property
    def is_cuda(self) -> bool:
        """Whether streams, graphs and kernels of CUDA exist."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done everything; the others run along with the host."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def name(self) -> str:
        """Return what the device calls itself."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else str(self.device)


def seconds(place: Place, call: Callable[[], object], rounds: int) -> float:
    """Return the median time of `call`, after one call to warm up."""
    times = []
    for _ in range(rounds + 1):
        place.synchronize()
        begin = time.perf_counter()
        call()
        place.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times[1:])


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Compute float32 on a GPU as such, "ieee", or as "tf32"."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, each in zip(backends, before, strict=True):
            backend.fp32_precision = each
