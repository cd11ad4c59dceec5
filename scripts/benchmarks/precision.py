"""Samples of a run in float32 and in bfloat16: same seeds, the difference of each pair, and of the two sets.

    python -m scripts.benchmarks.precision runs/digits/main --samples 500

The network computes in bfloat16 by autocast, as with `trainer.precision: bf16-mixed`; the sampler is in float32. The
Frechet distance is that of the samples as they are, without a feature extractor; its scale is the distance of two sets
in float32 with different seeds.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

import lightning_guide as lg
from lightning_guide.evaluation.metrics.frechet import frechet_distance
from scripts.lib.command_line import run_script


def compare(run: str, *, samples: int = 500, steps: int = 18, batch: int = 50) -> None:
    """Print the differences and the time in bfloat16 over that in float32.

    Args:
        run: folder of the run.
        samples: samples in each set.
        steps: steps of Heun's sampler.
        batch: samples in one network call.
    """
    torch.set_num_threads(1)
    model = lg.load(run)
    count = {"labels": [i % model.num_classes for i in range(samples)]} if model.num_classes else {"count": samples}

    def drawn(seed: int, *, reduced: bool) -> tuple[Tensor, float]:
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            x = lg.sample(model, lg.Heun(steps), seed=seed, batch_size=batch, **count)
        return x.flatten(1), time.process_time() - begin

    (exact, seconds), (rough, less), (other, _) = (
        drawn(0, reduced=False),
        drawn(0, reduced=True),
        drawn(1, reduced=False),
    )
    spread = exact.std()
    each = (rough - exact).square().mean(1).sqrt() / spread
    print(f"difference of a pair over the standard deviation: median {each.median():.2%}, largest {each.max():.2%}")
    print(f"Frechet distance: {distance(rough, exact):.3g} by bfloat16, {distance(other, exact):.3g} by another seed")
    print(f"CPU seconds: {seconds:.1f}, {less:.1f} in bfloat16")


def distance(one: Tensor, other: Tensor) -> float:
    """Return the Frechet distance of two sets (N, D)."""
    fitted = [part for x in (one.double(), other.double()) for part in (x.mean(0), x.T.cov())]
    return float(frechet_distance(*fitted))


if __name__ == "__main__":
    run_script(compare)
