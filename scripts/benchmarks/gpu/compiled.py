"""Compiled and graphed sampling: the samples of eager code, compiled once, and how much faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch._dynamo.utils import counters

from lightning_guide.compiled import Call
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance, PerturbedAttentionGuidance
from lightning_guide.inference import compile_networks, fuse_weights, with_fixed_addresses
from lightning_guide.network import Network
from lightning_guide.utils.modules import map_modules
from scripts.benchmarks.gpu.models import SMALL, draw, edm2, randomized
from scripts.benchmarks.gpu.place import Place, Row, Size, at_most, float32_as, holds, measured, seconds, skipped

__all__ = ["check"]

TOLERANCE = 1e-3
GUIDANCES: dict[str, Callable[[Denoiser, Denoiser, float], Denoiser]] = {
    "CFG": lambda main, guider, weight: ClassifierFreeGuidance(weight, positive=main),
    "PAG": lambda main, guider, weight: PerturbedAttentionGuidance(weight, positive=main),
    "autoguidance": lambda main, guider, weight: Autoguidance(guider, weight, positive=main),
}


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield differences from eager samples, recompilations for another weight, and speed."""
    main, guider = [randomized(SMALL["EDM2"]()).to(place.device) for _ in range(2)]
    torch.manual_seed(0)
    large = edm2(replace(size, levels=min(size.levels, 2))).to(place.device).eval().requires_grad_(False)
    for way in ("compiled", "graphs"):
        if way not in place.calls:
            yield skipped(way, "needs CUDA")
            continue
        ready = partial(_ready, call=place.calls[way](), fixed=way == "graphs")
        for name, make in GUIDANCES.items():
            with float32_as("ieee"):
                expected = draw(fuse_weights(make(main, guider, 2.0)), place.device, 3)
                found = [draw(model, place.device, 3) for model in [ready(make(main, guider, 2.0))] for _ in range(3)]
                difference = max(float((x - expected).abs().max() / expected.abs().max()) for x in found)
                yield at_most(f"{way}, {name}: difference from eager", difference, TOLERANCE)
                before = counters["stats"]["unique_graphs"]
                draw(ready(make(main, guider, 3.0)), place.device, 3)
                again = counters["stats"]["unique_graphs"] - before
                yield holds(f"{way}, {name}: graphs of another weight", str(again), "0", again == 0)
        guided = ClassifierFreeGuidance(2.0, positive=large)
        eager, fast = fuse_weights(guided), ready(guided)
        times = [
            seconds(place, lambda model=model: draw(model, place.device, size.batch), size.rounds)  # type: ignore[misc]
            for model in (eager, fast)
        ]
        yield measured(f"{way}, CFG of a larger network", f"{times[0] / times[1]:.2f} times eager")


def _ready(denoiser: Denoiser, *, call: Call, fixed: bool) -> Denoiser:
    """Return `denoiser` as `fuse_weights` makes it with compile."""
    fused = fuse_weights(denoiser)
    if fixed:
        fused = map_modules(fused, lambda part: with_fixed_addresses(part) if isinstance(part, Network) else None)  # type: ignore[assignment]
    return compile_networks(fused, call)
