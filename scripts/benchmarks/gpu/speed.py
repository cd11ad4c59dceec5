"""Speed over the direct formulation, the share of the device's peak, and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance
from lightning_guide.inference import fuse_weights
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.learning_rate import adam
from scripts.benchmarks.edm2 import step
from scripts.benchmarks.gpu.models import baseline, edm2, labels
from scripts.benchmarks.gpu.place import Place, Row, Size, measured, seconds, skipped

__all__ = ["check"]

SAMPLER = Heun(KarrasGrid(2))
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield ratios to the direct formulation, FLOPs a second over those of a matrix product, and memory."""
    torch.manual_seed(0)
    main, guider = edm2(size).to(place.device), edm2(size).to(place.device)
    direct, other = baseline(size).to(place.device), baseline(size).to(place.device)
    x = torch.randn(size.batch, 3, size.side, size.side).to(place.device)
    given = x, torch.rand(size.batch).add_(0.1).to(place.device), labels(size.batch).to(place.device)
    for name, dtype in PRECISIONS.items():

        def narrow(dtype: torch.dtype | None = dtype) -> AbstractContextManager[object]:
            return nullcontext() if dtype is None else torch.autocast(place.device.type, dtype)

        if dtype != torch.float16:  # trained with scaled losses
            trained = [_trained(model, given, narrow) for model in (copy.deepcopy(direct), copy.deepcopy(main))]
            yield _ratio(f"training step, {name}", place, size, *trained)
        with torch.no_grad():
            called = [_called(model, given, narrow) for model in (direct.eval(), fuse_weights(main.eval()))]
            yield _ratio(f"network call, {name}", place, size, *called)
            yield _share(name, dtype, place, size, called[1])
            ways = Autoguidance(other.eval(), 2.0, positive=direct), Autoguidance(guider.eval(), 2.0, positive=main)
            drawn = [_drawn(fuse_weights(way), place, size, narrow) for way in ways]
            yield _ratio(f"Heun with autoguidance, {name}", place, size, *drawn)
            yield _memory(f"memory of that, {name}", place, drawn[1])


def _trained(
    model: Denoiser, given: tuple[Tensor, ...], narrow: Callable[[], AbstractContextManager[object]]
) -> Callable[[], None]:
    make = adam() if isinstance(model, Preconditioned) else torch.optim.Adam
    optimizer = make(model.train().parameters())

    def run() -> None:
        with narrow():
            step(model, optimizer, *given)

    return run


def _called(
    model: Denoiser, given: tuple[Tensor, ...], narrow: Callable[[], AbstractContextManager[object]]
) -> Callable[[], None]:
    def run() -> None:
        with narrow():
            model(*given)

    return run


def _drawn(
    denoiser: Denoiser, place: Place, size: Size, narrow: Callable[[], AbstractContextManager[object]]
) -> Callable[[], None]:
    def run() -> None:
        seeds = SampleSeeds(0, range(size.batch))
        with narrow():
            SAMPLER.sample(denoiser, seeds=seeds, condition=labels(size.batch), device=place.device)

    return run


def _ratio(name: str, place: Place, size: Size, base: Callable[[], None], ours: Callable[[], None]) -> Row:
    """Return how many times as fast as `base` ours is."""
    slow, fast = (seconds(place, call, size.rounds) for call in (base, ours))
    return measured(name, f"{slow / fast:.2f} times the direct formulation, {1e3 * fast:.3g} ms")


def _share(name: str, dtype: torch.dtype | None, place: Place, size: Size, call: Callable[[], None]) -> Row:
    """Return the FLOPs of one call over its time, as a share of those of a matrix product."""
    with FlopCounterMode(display=False) as counter:  # on the host, of one sample
        edm2(size)(torch.zeros(1, 3, size.side, size.side), torch.ones(1), labels(1))
    a = torch.randn(size.matmul, size.matmul).to(place.device, dtype or torch.float32)
    peak = 2 * size.matmul**3 / seconds(place, lambda: a @ a, size.rounds)
    rate = size.batch * counter.get_total_flops() / seconds(place, call, size.rounds)
    return measured(f"share of peak, {name}", f"{rate / peak:.1%} of {peak / 1e12:.3g} TFLOP/s")


def _memory(name: str, place: Place, call: Callable[[], None]) -> Row:
    if not place.is_cuda:
        return skipped(name, "needs CUDA")
    before = torch.cuda.memory_allocated(place.device)
    torch.cuda.reset_peak_memory_stats(place.device)
    call()
    peak = torch.cuda.max_memory_allocated(place.device) - before
    return measured(name, f"{peak / 2**20:.0f} MiB beside {before / 2**20:.0f} MiB of models")
