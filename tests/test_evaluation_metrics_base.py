"""Lifecycle of sample metrics: clone, move, reset, and equal values on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation import (
    CMMD,
    ClassAccuracy,
    ClassifierFeatures,
    ClassShares,
    ClipScore,
    DensityCoverage,
    FrechetDistance,
    FrechetInterval,
    InceptionScore,
    KernelDistance,
    Memorization,
    OffSupport,
    PrecisionRecall,
    RawPixels,
)
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore

SHARES = {"uneven": slice(None), "none on rank 1": 1, "none on rank 0": 0}


def images(count: int, seed: int) -> Tensor:
    """Return random images uint8 (count, 1, 4, 4)."""
    return torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Words(RawPixels):
    """Pixels with embeddings of prompts."""

    def words(self, texts: list[str], device: torch.device) -> Tensor:
        return torch.eye(16, device=device)[: len(texts)]


def prepared(run: str) -> list[SampleMetric]:
    """Return every metric of images, prepared."""
    metrics: list[SampleMetric] = [
        FrechetDistance(RawPixels()),
        PrecisionRecall(RawPixels(), k=2),
        ClassAccuracy(ClassifierFeatures(run)),
        ClassShares(ClassifierFeatures(run)),
        OffSupport(3),
        ClipScore(Words(), ["dark", "light"]),  # type: ignore[arg-type]
    ]
    for metric in metrics:
        metric.prepare([Batch(part) for part in images(40, 0).split(16)])
    return metrics


def labels(x: Tensor) -> Tensor:
    """Return labels -1, 0, 1 that depend on the image."""
    return x.flatten(1).to(torch.int64).sum(1) % 3 - 1


def values(metrics: list[SampleMetric], x: Tensor) -> dict[str, float]:
    """Return the metrics of `x`, in batches of 4."""
    report: dict[str, float] = {}
    for metric in metrics:
        metric.reset()
        for part in x.split(4) if len(x) else ():
            metric.update(part, labels(part))
        report |= {key: value.item() for key, value in metric.compute().items()}
    return report


def save_classifier(run: Path) -> str:
    """Save a classifier with random weights in `run`."""
    torch.manual_seed(0)
    network = SmallClassifier([1, 4, 4], num_classes=2, widths=[8])
    SnapshotStore(run / "snapshots").save(network.state_dict(), images=1, sigma_rel=0.0, recipe=network.recipe)
    return str(run)


def work(rank: int, folder: str) -> None:
    """Run one of two processes: every split of 13 samples, with results as JSON."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    originals = prepared(f"{folder}/run")
    metrics = [metric.clone() for metric in originals]
    results = {}
    for name, share in SHARES.items():
        own = images(13, 1)[rank::2] if share == slice(None) else images(13, 1)[: 0 if share == rank else None]
        results[name] = values(metrics, own)
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    expected = values(prepared(save_classifier(tmp_path / "run")), images(13, 1))
    shares, distances = {"share_0", "share_1"}, {"off_ratio", "off_norm", "on_norm"}
    assert set(expected) == {"fd", "precision", "recall", "class_agreement", "clip_score"} | shares | distances
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert set(results) == set(SHARES)
        for name, found in results.items():
            assert found == pytest.approx(expected, rel=1e-10, abs=1e-10), f"{name} on rank {rank}"


def test_prepared_state_survives_clone_to_and_reset(tmp_path: Path) -> None:
    originals = prepared(save_classifier(tmp_path))
    expected = values(originals, images(20, 2))
    clones = [metric.clone() for metric in originals]
    for metric in clones:
        assert isinstance(metric.to(torch.device("cpu")), type(metric))
        metric.reset()
    assert values(clones, images(20, 2)) == expected
    assert values(clones, images(30, 3)) != expected
    assert values(clones, images(20, 2)) == expected
    assert values(originals, images(20, 2)) == expected


def test_clones_do_not_share_samples_but_share_the_extractor(tmp_path: Path) -> None:
    for metric in prepared(save_classifier(tmp_path)):
        one, other = metric.clone(), metric.clone()
        one.update(images(8, 4), labels(images(8, 4)))
        other.update(images(9, 5), labels(images(9, 5)))
        alone = metric.clone()
        alone.update(images(9, 5), labels(images(9, 5)))
        assert str(other.compute()) == str(alone.compute())
        if not isinstance(metric, OffSupport):
            assert one.extractor is other.extractor is metric.extractor


def test_to_moves_reference_and_states(tmp_path: Path) -> None:
    for metric in prepared(save_classifier(tmp_path))[:2]:
        metric.update(images(8, 4), None)
        metric.to("meta")
        assert metric.device.type == "meta"
        assert {buffer.device.type for buffer in metric.buffers()} == {"meta"}
        for state in metric.metric_state.values():
            assert {part.device.type for part in ([state] if isinstance(state, Tensor) else state)} == {"meta"}


def test_metric_stays_on_the_cpu_instead_of_a_device_without_float64() -> None:
    metric = FrechetDistance(RawPixels())
    assert metric.to("mps").device == torch.device("cpu")
    assert metric.to(device=torch.device("mps")) is metric


def test_results_are_float64_scalars_without_graph(tmp_path: Path) -> None:
    for metric in prepared(save_classifier(tmp_path)):
        assert not [name for name, parameter in metric.named_parameters() if parameter.requires_grad]
        metric.update(images(8, 4), torch.zeros(8, dtype=torch.int64))
        for value in metric.compute().values():
            assert value.shape == () and value.dtype == torch.float64 and not value.requires_grad


def held(metric: SampleMetric) -> int:
    """Return the bytes in the states of a metric."""
    states = [getattr(metric, name) for name in metric._defaults]
    tensors = [tensor for state in states for tensor in (state if isinstance(state, list) else [state])]
    return sum(tensor.nbytes for tensor in tensors)


class FourClasses(RawPixels):
    """Pixels with logits of four classes."""

    def logits(self, x: Tensor) -> Tensor:
        return self(x)[:, :4]


def test_state_grows_with_samples_only_for_metrics_of_all_features(tmp_path: Path) -> None:
    constant: list[SampleMetric] = [
        FrechetDistance(RawPixels()),
        InceptionScore(FourClasses()),
        ClassAccuracy(ClassifierFeatures(save_classifier(tmp_path))),
        ClassShares(ClassifierFeatures(str(tmp_path))),
        OffSupport(3),
        ClipScore(Words(), ["dark", "light"]),  # type: ignore[arg-type]
    ]
    growing: list[SampleMetric] = [
        kind(RawPixels())
        for kind in (KernelDistance, CMMD, PrecisionRecall, DensityCoverage, Memorization, FrechetInterval)
    ]
    for number, metric in enumerate([*constant, *growing]):
        metric.prepare([Batch(images(20, 0))])
        bytes_of = []
        for size in (10, 500):
            metric.update(images(size, 1), torch.zeros(size, dtype=torch.int64))
            bytes_of.append(held(metric))
        grown = bytes_of[1] - bytes_of[0]
        assert grown == (0 if number < len(constant) else 500 * 16 * 4), type(metric).__name__
