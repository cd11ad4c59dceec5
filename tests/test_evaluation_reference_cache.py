"""Cache of reference features: keyed by content, computed once, and split over processes."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_guide.evaluation import CMMD, DensityCoverage, KernelDistance, Memorization, PrecisionRecall
from lightning_guide.evaluation.metrics.features import FeatureMetric
from lightning_guide.evaluation.reference.cache import FeatureCache
from tests.processes import Processes
from tests.test_evaluation_reference_statistics import Counted, batches, bits_flipped, points

KINDS = [KernelDistance, CMMD, PrecisionRecall, DensityCoverage, Memorization]


def results(metric: FeatureMetric) -> dict[str, float]:
    metric.update(points(40, 1).clone())  # a copy, since extractors cache the last batch
    return {key: float(value) for key, value in metric.compute().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_computed_once_for_their_content(kind: Any, tmp_path: Path) -> None:
    real = points(30)
    plain = kind(Counted(), max_reference=20)
    plain.prepare(batches(real))
    expected = results(plain)
    for folder, seen in ((None, None), ("new", None), ("new", 40)):
        extractor = Counted()
        metric = kind(extractor, max_reference=20, cache=folder and str(tmp_path / folder))
        metric.prepare(batches(real, 11))
        assert torch.equal(metric.reference, plain.reference)
        assert results(metric) == expected and (seen is None or extractor.seen == seen)
    # other data, other weights, another subset: other files
    changed = Counted()
    changed.matrix[0, 0] += 1e-3
    for data, extractor, most in ((real[:-1], Counted(), 20), (real, changed, 20), (real, Counted(), 21)):
        kind(extractor, max_reference=most, cache=str(tmp_path / "new")).prepare(batches(data))
        assert extractor.seen >= most
    assert len(list((tmp_path / "new").iterdir())) == 4
    # a complete set has the same key for every limit
    whole = [Counted(), Counted()]
    for extractor, most in zip(whole, (30, 1000), strict=True):
        kind(extractor, max_reference=most, cache=str(tmp_path / "whole")).prepare(batches(real))
    assert [each.seen for each in whole] == [30, 0]


def test_metrics_of_one_extractor_share_a_file_and_check_their_least_count(tmp_path: Path) -> None:
    few = points(4)
    KernelDistance(Counted(), cache=str(tmp_path)).prepare(batches(few))
    with pytest.raises(ValueError, match="DensityCoverage needs at least 6 real examples, got 4"):
        DensityCoverage(Counted(), cache=str(tmp_path)).prepare(batches(few))
    with pytest.raises(ValueError, match="KernelDistance needs at least 2 real examples, got 0"):
        KernelDistance(Counted()).prepare([])
    assert len(list(tmp_path.iterdir())) == 1


def test_flipped_bits_are_detected(tmp_path: Path) -> None:
    metric = PrecisionRecall(Counted(), max_reference=20, cache=str(tmp_path))
    metric.prepare(batches(points(30)))
    expected, (file,) = metric.reference.clone(), tmp_path.iterdir()
    for at in bits_flipped(file, 31):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.prepare(batches(points(30)))
        assert torch.equal(metric.reference, expected), at
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="reference features are computed again: .*npz cannot be read as reference"):
        metric.prepare(batches(points(30)))


def test_unreadable_file_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = KernelDistance(Counted(), cache=str(tmp_path))
    metric.prepare(batches(points(30)))
    expected = metric.reference.clone()

    def fail(*_: Any) -> None:
        raise PermissionError("no permission")

    for owner, name in ((FeatureCache, "read"), (Path, "is_file")):
        with monkeypatch.context() as patched, pytest.warns(UserWarning, match="computed again: no permission"):
            patched.setattr(owner, name, fail)
            metric.prepare(batches(points(30)))
        assert torch.equal(metric.reference, expected)


def prepare_together(folder: str) -> None:
    """Run one of two processes: features computed in shares, cached, and cached by one process only."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    records: list[tuple[int, dict[str, float]]] = []
    for count, most, cache in ((30, 20, None), (30, 30, "new"), (30, 30, "new"), (9, 30, None), (30, 30, "own")):
        extractor = Counted()
        own = f"{folder}/own-{rank}" if cache == "own" else cache and f"{folder}/{cache}"
        metric = KernelDistance(extractor, max_reference=most, cache=own)
        metric.prepare(batches(points(count), 10))
        seen = extractor.seen
        metric.update(points(40, 1)[rank::2])
        records.append((seen, {key: float(value) for key, value in metric.compute().items()}))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(records))
    dist.destroy_process_group()


def test_processes_share_the_work_and_have_the_same_features(processes: Processes, tmp_path: Path) -> None:
    KernelDistance(Counted(), max_reference=30, cache=f"{tmp_path}/own-1").prepare(batches(points(30)))
    call = ("tests.test_evaluation_reference_cache", "prepare_together")
    processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path))
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    expected = []
    for count, most in ((30, 20), (30, 30), (30, 30), (9, 30), (30, 30)):
        metric = KernelDistance(Counted(), max_reference=most)
        metric.prepare(batches(points(count), 10))
        expected.append(results(metric)["kid"])
    for records in (one, two):
        assert [values["kid"] for _, values in records] == pytest.approx(expected, rel=1e-10)
    # of three batches of ten rank 0 takes the first and the third, rank 1 the second, and the first for its width
    assert [seen for seen, _ in one][1:] == [20, 0, 9, 20] and [seen for seen, _ in two][1:] == [20, 0, 9, 20]
    assert one[0][0] < 30 and two[0][0] < 30
