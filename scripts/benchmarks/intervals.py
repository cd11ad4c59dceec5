"""Intervals of `score`, for Gaussian features: width relative to the spread of independent sets, and coverage.

python -m scripts.benchmarks.intervals --sets 200
"""

from __future__ import annotations

import torch

from lightning_guide.evaluation.scoring import MetricName, Scorer
from scripts.lib.command_line import run_script

METRICS: list[MetricName] = ["fd", "kid", "mind", "precision_recall", "density_coverage", "authenticity", "vendi"]
QUANTILE = 1.96
SETTINGS = ((4, 150, 300, 1.3, 0.5), (32, 200, 200, 0.9, 0.1))  # features, samples, examples, scale and shift


def intervals(sets: int = 200, *, resampled: int = 15, resamples: int = 20, seed: int = 0) -> None:
    """Print, for each setting and metric, the mean width over `resampled` sets over the spread of `sets` values.

    Beside it stands the share of the `resampled` intervals that hold the mean of all `sets` values.
    """
    device = torch.device("cpu")
    for width, samples, examples, scale, shift in SETTINGS:
        generator = torch.Generator().manual_seed(seed)
        real = torch.randn(examples, width, generator=generator)
        once, halves = (Scorer(METRICS, real, width=width, resamples=n, device=device) for n in (0, resamples))
        drawn = [torch.randn(samples, width, generator=generator) * scale + shift for _ in range(sets)]
        values = [once.score(each).values for each in drawn]
        estimates = [halves.score(each).estimates() for each in drawn[:resampled]]
        print(f"{width} features, {samples} samples, {examples} examples")
        for name in values[0]:
            spread = QUANTILE * torch.tensor([each[name] for each in values]).std().item()
            middle = sum(each[name] for each in values) / sets
            ends = [(each[name].low or 0.0, each[name].high or 0.0) for each in estimates]
            mean = sum(high - low for low, high in ends) / 2 / resampled
            held = sum(low <= middle <= high for low, high in ends) / resampled
            print(f"  {name}: {mean / spread:.2f}, holds the mean in {held:.0%}")


if __name__ == "__main__":
    run_script(intervals)
