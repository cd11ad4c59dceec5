"""Time from the sums over N features of width F to a Frechet distance, against the textbook formula in scipy.

python -m scripts.benchmarks.frechet --samples 50000 --width 2048 --threads 2
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_guide.evaluation.metrics.frechet import frechet_distance, mean_and_covariance
from scripts.lib.command_line import run_script

Sums = tuple[Tensor, Tensor, Tensor]


class Timed(NamedTuple):
    """A distance and its time; on a busy machine the CPU seconds of all threads are more reliable."""

    seconds: float
    cpu_seconds: float
    distance: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.cpu_seconds:.2f} s of CPU time), distance {self.distance:.6f}"


def bench(samples: int = 50_000, width: int = 2048, *, threads: int = 2, repetitions: int = 3) -> None:
    """Print the fastest of `repetitions` of this library, and one run of scipy."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    begin = time.perf_counter()
    reference, generated = (_sums(samples, mixing, shift, generator) for shift in (0.0, 0.02))
    print(f"drawing and adding up 2 x {samples} features of width {width}: {time.perf_counter() - begin:.1f} s")
    ours = min(_timed(lambda: _distance(reference, generated)) for _ in range(repetitions))
    print(f"Cholesky factor and eigenvalues, {threads} threads: {ours}")
    scipys = _timed(lambda: _by_scipy(reference, generated))
    print(f"scipy.linalg.sqrtm of the product: {scipys}")
    print(
        f"ratio {scipys.seconds / ours.seconds:.1f} ({scipys.cpu_seconds / ours.cpu_seconds:.1f} in CPU time), "
        f"relative difference {abs(ours.distance / scipys.distance - 1):.1e}"
    )


def _sums(samples: int, mixing: Tensor, shift: float, generator: torch.Generator) -> Sums:
    """Return n, sum f and sum f f^T of correlated non-negative features, like those of Inception."""
    count, total, outer = torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros(())
    for begin in range(0, samples, 1000):
        size = min(1000, samples - begin)
        z = torch.randn(size, len(mixing), generator=generator)
        features = ((z @ mixing).relu() + shift).to(torch.float64)
        count, total, outer = count + size, total + features.sum(0), outer + features.mT @ features
    return count, total, outer


def _distance(reference: Sums, generated: Sums) -> float:
    return float(frechet_distance(*mean_and_covariance(*reference), *mean_and_covariance(*generated)))


def _by_scipy(reference: Sums, generated: Sums) -> float:
    from scipy.linalg import sqrtm

    (mean_1, cov_1), (mean_2, cov_2) = mean_and_covariance(*reference), mean_and_covariance(*generated)
    root = sqrtm(cov_1.numpy() @ cov_2.numpy()).real.trace()
    return float((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root)


def _timed(call: Callable[[], float]) -> Timed:
    begin, cpu = time.perf_counter(), time.process_time()
    distance = call()
    return Timed(time.perf_counter() - begin, time.process_time() - cpu, distance)


if __name__ == "__main__":
    run_script(bench)
