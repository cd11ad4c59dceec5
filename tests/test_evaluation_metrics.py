"""Metrics of features against other packages and against explicit sums."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import cleanfid.fid
import numpy as np
import prdc
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch_fidelity import metric_fid, metric_isc, metric_kid

from lightning_guide.data import Batch
from lightning_guide.evaluation import (
    CMMD,
    MIND,
    Authenticity,
    DensityCoverage,
    FrechetDistance,
    FrechetInterval,
    InceptionScore,
    KernelDistance,
    Memorization,
    PrecisionRecall,
    RawPixels,
    SampleMetric,
    VendiScore,
)
from tests.features import score
from tests.processes import Processes


class Logits(RawPixels):
    """Classifier whose logits are the data."""

    def logits(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def sets(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return 200 real and 200 generated rows of 12 features."""
    real = torch.randn(200, 12, generator=generator)
    return real, 0.8 * torch.randn(200, 12, generator=generator) + 0.3


# Agreement with other packages


def test_kid_equals_torch_fidelity_and_clean_fid_with_one_full_subset(sets: tuple[Tensor, Tensor]) -> None:
    real, fake = sets
    ours = score(KernelDistance(RawPixels(), chunk=37), real, fake)["kid"]
    theirs = metric_kid.kid_features_to_metric(
        fake, real, kid_subsets=1, kid_subset_size=200, verbose=False, kid_kernel="poly", rng_seed=0
    )[metric_kid.KEY_METRIC_KID_MEAN]
    assert ours == pytest.approx(theirs, rel=1e-5) and ours > 0.01
    pairs = cleanfid.fid.kernel_distance(real.double().numpy(), fake.double().numpy(), 1, 200)
    assert ours == pytest.approx(pairs, rel=1e-6)


def test_density_and_coverage_equal_prdc(sets: tuple[Tensor, Tensor]) -> None:
    real, fake = sets
    for k in (1, 5):
        theirs = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
        ours = score(DensityCoverage(RawPixels(), k=k, chunk=37), real, fake)
        assert ours == {name: pytest.approx(theirs[name], abs=1e-9) for name in ("density", "coverage")}
        assert score(PrecisionRecall(RawPixels(), k=k), real, fake) == {
            name: pytest.approx(theirs[name], abs=1e-9) for name in ("precision", "recall")
        }


def test_density_balls_include_their_border(sets: tuple[Tensor, Tensor]) -> None:
    real = sets[0]
    assert score(DensityCoverage(RawPixels(), k=4), real, real.clone()) == {"density": 1.25, "coverage": 1.0}


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # in clean-fid
def test_frechet_distance_equals_clean_fid_and_torch_fidelity(sets: tuple[Tensor, Tensor]) -> None:
    real, fake = (part.double().numpy() for part in sets)
    ours = score(FrechetDistance(RawPixels()), *sets)["fd"]
    moments = (real.mean(0), np.cov(real, rowvar=False), fake.mean(0), np.cov(fake, rowvar=False))
    assert ours == pytest.approx(cleanfid.fid.frechet_distance(*moments), rel=1e-6)
    statistics = [{"mu": m, "sigma": s} for m, s in (moments[2:], moments[:2])]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_inception_score_equals_torch_fidelity_with_one_split(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(300, 7, generator=generator)
    theirs = metric_isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    ours = score(InceptionScore(Logits()), logits, logits)["inception_score"]
    assert ours == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-6)


# Explicit sums and known values


def test_inception_score_of_certain_balanced_classes_is_their_number() -> None:
    clear = 1e3 * torch.eye(5).repeat(4, 1)
    assert score(InceptionScore(Logits()), clear, clear) == {"inception_score": pytest.approx(5)}
    assert score(InceptionScore(Logits()), clear, torch.zeros(9, 5)) == {"inception_score": pytest.approx(1)}


def test_cmmd_is_a_thousand_times_the_discrepancy_of_unit_vectors(sets: tuple[Tensor, Tensor]) -> None:
    real, fake = ([row / row.norm() for row in part.double()] for part in sets)

    def mean(a: list[Tensor], b: list[Tensor]) -> float:
        values = [math.exp(-float((x - y).square().sum()) / (2 * 0.5**2)) for x in a[:40] for y in b[:40]]
        return sum(values) / len(values)

    ours = score(CMMD(RawPixels(), bandwidth=0.5, chunk=7), sets[0][:40], sets[1][:40])["cmmd"]
    assert ours == pytest.approx(1000 * (mean(real, real) + mean(fake, fake) - 2 * mean(real, fake)), rel=1e-5)
    assert score(CMMD(RawPixels()), 5 * sets[0], sets[0])["cmmd"] == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased(generator: torch.Generator) -> None:
    values = []
    for _ in range(200):
        real, fake = torch.randn(2, 20, 8, generator=generator)
        values.append(score(KernelDistance(RawPixels()), real, fake)["kid"])
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert abs(mean) < 3 * error and error < 0.05  # the biased one would be 2 (E k(x, x) - E k(x, y)) / 20 = 0.7


def test_copies_are_memorized_and_new_draws_are_not(generator: torch.Generator) -> None:
    real, fresh = torch.randn(500, 8, generator=generator), torch.randn(100, 8, generator=generator)
    assert score(Memorization(RawPixels()), real, fresh)["memorized"] < 0.02
    near = real[:100] + 1e-3 * torch.randn(100, 8, generator=generator)
    assert score(Memorization(RawPixels()), real, near)["memorized"] == 1
    half = score(Memorization(RawPixels(), chunk=7), real, torch.cat([near[:50], fresh[:50]]))
    assert half["memorized"] == pytest.approx(0.5, abs=0.02)
    one = score(Memorization(RawPixels()), torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [0.9], [2.0]]))
    assert one == {"memorized": pytest.approx(1 / 3), "nearest": pytest.approx(1.3)}  # 1 / 3 is not below the ratio


def test_frechet_interval_coverage_and_bias_of_the_limit(generator: torch.Generator) -> None:
    real = torch.randn(20_000, 4, generator=generator)
    shift, covered, plain, limits = 0.3, 0, [], []
    for _ in range(40):
        fake = torch.randn(300, 4, generator=generator)
        fake[:, 0] += shift
        result = score(FrechetInterval(RawPixels(), resamples=60), real, fake)
        covered += result["fd_low"] <= shift**2 <= result["fd_high"]
        plain.append(result["fd"])
        limits.append(result["fd_infinity"])
        assert result["fd_low"] < result["fd_high"]
    assert covered >= 33  # 38 expected, three standard deviations are 4
    assert np.mean(plain) - shift**2 > 0.01  # the bias of 300 samples
    assert abs(np.mean(limits) - shift**2) < 0.5 * (np.mean(plain) - shift**2)


def test_frechet_interval_contains_the_distance_and_is_independent_of_batches(sets: tuple[Tensor, Tensor]) -> None:
    plain = score(FrechetDistance(RawPixels()), *sets)["fd"]
    first = score(FrechetInterval(RawPixels()), *sets, size=200)
    second = score(FrechetInterval(RawPixels()), sets[0], sets[1].flip(0), size=11)
    assert first["fd"] == pytest.approx(plain, rel=1e-12)
    assert second == {key: pytest.approx(value, rel=1e-9) for key, value in first.items()}


# Errors


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DensityCoverage(RawPixels(), k=0), "DensityCoverage needs k >= 1"),
        (lambda: CMMD(RawPixels(), bandwidth=0), "positive bandwidth, got 0"),
        (lambda: Memorization(RawPixels(), ratio=1), "ratio between 0 and 1, got 1"),
        (lambda: KernelDistance(RawPixels(), max_reference=1), "max_reference >= 2, got 1"),
        (lambda: FrechetInterval(RawPixels(), resamples=1), "resamples >= 10"),
    ],
)
def test_settings_out_of_range_raise(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("kind", [KernelDistance, CMMD, Memorization, DensityCoverage])
def test_too_few_samples_raise(kind: Any) -> None:
    metric = kind(RawPixels())
    with pytest.raises(ValueError, match=f"{kind.__name__} is not prepared"):
        metric.update(torch.zeros(2, 2))
    metric.prepare([Batch(torch.randn(9, 2))])
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs at least \d samples, got 0"):
        metric.compute()
    with pytest.raises(ValueError, match=r"needs at least \d real examples, got 1"):
        kind(RawPixels()).prepare([Batch(torch.randn(1, 2))])


# Two processes


def all_metrics(rank: int, world: int) -> list[dict[str, float]]:
    """Return every metric here, of samples split unevenly over the processes."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(80, 6, generator=generator), torch.randn(53, 6, generator=generator) + 0.2
    kinds: list[SampleMetric] = [
        KernelDistance(RawPixels()),
        CMMD(RawPixels()),
        DensityCoverage(RawPixels()),
        MIND(RawPixels(), directions=50),
        VendiScore(RawPixels(), orders=[0.5, 1]),
        Authenticity(RawPixels()),
        Memorization(RawPixels()),
        FrechetInterval(RawPixels()),
        InceptionScore(Logits()),
    ]
    return [score(metric, real, fake[rank::world], size=10) for metric in kinds]


def all_metrics_of_rank(folder: str, world: int) -> None:
    """Write `all_metrics` of one of several processes."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(all_metrics(rank, world)))
    dist.destroy_process_group()


def test_two_processes_agree_with_one(processes: Processes, tmp_path: Path) -> None:
    call = ("tests.test_evaluation_metrics", "all_metrics_of_rank")
    processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path), world=2)
    alone = all_metrics(0, 1)
    for rank in range(2):
        for ours, expected in zip(json.loads((tmp_path / f"{rank}.json").read_text()), alone, strict=True):
            assert ours == {key: pytest.approx(value, rel=1e-9, abs=1e-12) for key, value in expected.items()}
