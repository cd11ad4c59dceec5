"""Every guidance gives the numbers of the CPU on the device, and 16 bits give them nearly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.inference import fuse_weights
from scripts.benchmarks.gpu.models import SMALL, Pair, draw, labels
from scripts.benchmarks.gpu.place import Place, Row, Size, at_most, float32_as, holds

__all__ = ["check"]

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "guidance"
CPU = torch.device("cpu")
COUNT = 3
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 2e-2}
"""Largest difference over the largest number."""


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield the largest difference of samples of each network under all guidances, and of its 16 bits."""
    written = read_guidances([str(FOLDER)])
    names = size.guidances or tuple(written)
    for network, make in SMALL.items():
        host = Pair(make())
        there = host.to(place.device)
        found: dict[str, float] = {}
        refused = 0
        for name in names:
            try:
                pair = [build_guidances({name: written[name]})[name].resolve(models) for models in (host, there)]
            except ValueError:  # as on every device: a guidance of tokens, for example, needs tokens
                refused += 1
                continue
            with float32_as("ieee"):
                x, y = (
                    draw(fuse_weights(made.eval()), at, COUNT).cpu()
                    for made, at in zip(pair, (CPU, place.device), strict=True)
                )
            found[name] = _difference(x, y)
        worst = max(found, key=lambda name: (found[name] != found[name], found[name]))
        for name, difference in found.items():
            if name != worst and not difference <= TOLERANCES[torch.float32]:
                yield at_most(f"{network}, {name}", difference, TOLERANCES[torch.float32])
        yield at_most(f"{network}, worst of {len(found)} guidances: {worst}", found[worst], TOLERANCES[torch.float32])
        yield holds(f"{network}, guidances compared", str(len(found)), "most of them", len(found) > refused)
        yield from _narrow(network, there, place)


def _narrow(network: str, models: Pair, place: Place) -> Iterator[Row]:
    """Yield how far one call in 16 bits is from float32."""
    x = torch.randn(COUNT, *models.main.data_shape, generator=torch.Generator().manual_seed(2)).to(place.device)
    given = x, torch.full((), 0.7, device=place.device), labels(COUNT).to(place.device)
    with torch.no_grad(), float32_as("ieee"):
        wide = models.main(*given).cpu()
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(place.device.type, dtype):
                narrow = models.main(*given).cpu()
            yield at_most(f"{network}, {str(dtype)[6:]} against float32", _difference(wide, narrow), TOLERANCES[dtype])


def _difference(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).abs().max() / x.abs().max())
