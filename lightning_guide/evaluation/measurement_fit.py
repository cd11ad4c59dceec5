"""How well samples meet the measurements that guide them, and how near they are to the examples that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives.composition import Reconstructed, Transformed
from lightning_guide.objectives.measurement import Measurement
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.distributed import all_gather_objects

__all__ = ["MeasurementFit", "fit_of_samples"]

Views = tuple[Callable[[Tensor], Tensor], ...]
"""Functions that lead, one after the other, from x to what is measured."""


class MeasurementFit:
    """Means of `fit_of_samples` over all samples of an evaluation and the measurements that guide it.

    All but `psnr` are root mean squares: `misfit` is 1 for samples of the posterior.
    """

    def __init__(self, guides: Iterable[nn.Module]) -> None:
        """Find the measurements in `guides`, a guided denoiser, for example."""
        self._found = {measurement: views for guide in guides for measurement, views in _measurements_in(guide)}
        self._sums: dict[str, Tensor] = {}  # name -> sum and count (2,)

    @torch.no_grad()
    def add(self, trajectory: Trajectory, count: int) -> None:
        """Add the first `count` samples of a finished `trajectory`."""
        for measurement, views in self._found.items():
            x = trajectory.x
            for view in views:
                x = view(x)
            for name, values in fit_of_samples(measurement, replace(trajectory, x=x)).items():
                sums = torch.stack([values[:count].sum(), torch.full_like(values[0], count)])
                self._sums[name] = sums + self._sums.get(name, 0)

    def compute(self) -> dict[str, float]:
        """Return the means over all processes, each of which has to call this."""
        # waits at the end of an evaluation: the means are reported by the host
        parts = all_gather_objects({name: sums.tolist() for name, sums in self._sums.items()})
        means = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            total, count = torch.tensor([part[name] for part in parts if name in part]).sum(0).tolist()
            means[name] = total / count if name == "psnr" else (total / count) ** 0.5
        return means


def fit_of_samples(measurement: Measurement, trajectory: Trajectory) -> dict[str, Tensor]:
    """Return how well the samples x of a finished `trajectory` fit their `measurement`, by name (B,).

    `misfit` is |y - A x|^2 / (m noise^2), of the m numbers of y that depend on x; without noise `residual` is
    |y - A x|^2 / m. If the hidden examples t are known, `psnr` is that of images (1 or 3 channels, clipped to [-1, 1])
    in dB, and `rmse` of any other x is |x - t|^2 / d, of d numbers.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, A = trajectory.x, measurement.operator
    known = measurement.truth is not None
    truth, y = measurement.observe(trajectory) if known else (x, measurement.measurements(trajectory))
    probe = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    seen = A(to_device(probe, x.device)) != 0
    rest = ((y - A(x)) * seen).flatten(1).square().sum(1) / seen.sum()
    found = {"misfit": rest / measurement.noise**2} if measurement.noise else {"residual": rest}
    if known and x.ndim == 4 and x.shape[1] in (1, 3):
        found["psnr"] = peak_signal_noise_ratio(x, truth, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3))
    elif known:
        found["rmse"] = (x - truth).flatten(1).square().mean(1)
    return found


def _measurements_in(root: nn.Module, views: Views = ()) -> Iterator[tuple[Measurement, Views]]:
    """Yield each measurement in `root`, with the way from x to what it measures."""
    if isinstance(root, Measurement):
        yield root, views
    if isinstance(root, Transformed) and not isinstance(root, Reconstructed):  # there it is x that is reconstructed
        views = (*views, root.transform)
    for child in root.children():
        yield from _measurements_in(child, views)
