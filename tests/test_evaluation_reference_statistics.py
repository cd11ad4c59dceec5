"""Reference statistics: cache by content, published files, malicious files, and mismatches."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from datamodules import NoData
from lightning_guide.data import Batch
from lightning_guide.evaluation import (
    FeatureExtractor,
    FrechetDistance,
    FrechetInterval,
    InceptionFeatures,
    ModuleFeatures,
    RawPixels,
)
from lightning_guide.evaluation.reference.cache import fingerprint
from lightning_guide.evaluation.reference.statistics import Statistics, read_statistics, write_statistics
from tests.processes import Processes


class Counted(FeatureExtractor):
    """Points times a matrix; counts the points in `seen`."""

    published: ClassVar[str | None] = "fid"

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(3, width) + 0.1)
        self.seen = 0

    def extract(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.float() @ self.matrix


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def batches(x: Tensor, size: int = 7) -> list[Batch]:
    return [Batch(part) for part in x.split(size)]


def distance(metric: FrechetDistance, real: Tensor, samples: Tensor) -> float:
    metric.prepare(batches(real))
    metric.update(samples.clone())  # a copy, since extractors cache the last batch
    return float(metric.compute()["fd"])


def bits_flipped(file: Path, step: int) -> Iterator[int]:
    """Flip one bit in every `step`-th byte of `file`, one after the other; restore the file at the end."""
    whole = file.read_bytes()
    for at in range(0, len(whole), step):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        yield at
    file.write_bytes(whole)


@pytest.mark.parametrize("kind", [FrechetDistance, FrechetInterval])
def test_statistics_are_computed_once_for_their_content(kind: Any, tmp_path: Path) -> None:
    real, samples, folder = points(30), points(40, 1), str(tmp_path / "cache")
    plain = pytest.approx(distance(kind(Counted()), real, samples), rel=1e-10)
    first, second = Counted(), Counted()
    assert distance(kind(first, cache=folder), real, samples) == plain and first.seen == 70
    assert distance(kind(second, cache=folder), real, samples) == plain and second.seen == 40
    assert len(list(Path(folder).iterdir())) == 1
    # other data, fewer data, other weights, other settings: other files
    other = real.clone()
    other[-1, 0] += 1e-6
    changed = Counted()
    changed.matrix[0, 0] += 1e-3
    for data, extractor in ((other, Counted()), (real[:-1], Counted()), (real, changed), (real, Counted(2))):
        seen = len(data) + 40
        distance(kind(extractor, cache=folder), data, samples)
        assert extractor.seen == seen
    assert len(list(Path(folder).iterdir())) == 5


def test_damaged_file_is_computed_again(tmp_path: Path) -> None:
    real, samples = points(30), points(40, 1)
    plain = pytest.approx(distance(FrechetDistance(Counted(), cache=str(tmp_path)), real, samples), rel=1e-10)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    again = Counted()
    with pytest.warns(UserWarning, match="reference statistics are computed again: .*npz cannot be read"):
        assert distance(FrechetDistance(again, cache=str(tmp_path)), real, samples) == plain
    assert again.seen == 70
    last = Counted()
    assert distance(FrechetDistance(last, cache=str(tmp_path)), real, samples) == plain and last.seen == 40


def test_unwritable_folder_only_warns(tmp_path: Path) -> None:
    real, samples = points(30), points(40, 1)
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="reference statistics are not stored: .*file"):
        found = distance(FrechetDistance(Counted(), cache=str(tmp_path / "file")), real, samples)
    assert found == distance(FrechetDistance(Counted()), real, samples)


def test_a_file_holds_the_bits_that_were_computed(tmp_path: Path) -> None:
    """The covariance is symmetric to the bit, whatever its rounding: a file is read as the mean with its transpose."""
    fresh = [FrechetDistance(Counted()), FrechetDistance(Counted(), cache=str(tmp_path))]
    for metric in (*fresh, cached := FrechetDistance(Counted(), cache=str(tmp_path))):
        metric.prepare(batches(points(1000)))
        assert torch.equal(metric.reference_covariance, metric.reference_covariance.mT)
        assert torch.equal(metric.reference_covariance, fresh[0].reference_covariance)
    assert cached.extractor.seen == 0


def test_flipped_bits_are_detected(tmp_path: Path) -> None:
    real = batches(points(30))
    metric = FrechetDistance(Counted(), cache=str(tmp_path))
    metric.prepare(real)
    expected, (file,) = metric.reference_covariance, tmp_path.iterdir()
    for at in bits_flipped(file, 97):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.prepare(real)
        assert torch.equal(metric.reference_covariance, expected), at


def test_concurrent_writers_leave_one_complete_file(tmp_path: Path) -> None:
    extractor, path = Counted(), tmp_path / "s.npz"
    mean, covariance = torch.randn(300).double(), torch.eye(300).double()
    held = Statistics(mean, covariance, num_images=9, extractor=extractor.identity, data_shape=(3,), data="ab")
    write_statistics(path, held)

    def work(number: int) -> bool:
        if number % 2:
            write_statistics(path, held)
        found = read_statistics(path, extractor)
        return torch.equal(found.covariance, covariance) and replace(found, mean=mean, covariance=covariance) == held

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprint_depends_on_examples_and_order() -> None:
    x = torch.randint(256, (10, 1, 3, 3), dtype=torch.uint8)
    assert fingerprint(batches(x, 3)) == fingerprint(batches(x, 10)) == fingerprint([Batch(x, torch.arange(10))])
    different = (x.flip(0), x[:9], x.reshape(10, 1, 9, 1), x.to(torch.int8), torch.cat([x, x[:1]]))
    assert len({fingerprint(batches(each))[0] for each in (x, *different)}) == 6
    with pytest.raises(ValueError, match="the real data change within the set"):
        fingerprint([Batch(x), Batch(x[:, :, :2])])


def published(x: Tensor) -> dict[str, Any]:
    """Return mu and sigma of `x` (N, F) by numpy."""
    return {"mu": x.double().numpy().mean(0), "sigma": np.cov(x.double().numpy(), rowvar=False)}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_published_files_give_the_same_distance_as_the_data(protocol: int, tmp_path: Path) -> None:
    real, samples = points(30), points(40, 1)
    extractor = Counted()
    plain = distance(FrechetDistance(extractor), real, samples)
    gaussian = published(extractor(real))
    content = {"num_images": np.int64(30), "fid": gaussian, "fd_dinov2": published(torch.randn(9, 6))}
    big = {key: value.astype(">f8") for key, value in gaussian.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"fid": {"mu": big["mu"], "sigma": np.asfortranarray(big["sigma"])}}))
    np.savez(tmp_path / "c.npz", **gaussian)
    for name in ("a.pkl", "b.pkl", "c.npz"):
        seen = extractor.seen
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = distance(FrechetDistance(extractor, statistics=str(tmp_path / name)), points(0), samples)
        assert found == pytest.approx(plain, rel=1e-6) and extractor.seen == seen + 40
        assert len([w for w in caught if "does not name its extractor" in str(w.message)]) == (name == "c.npz")
    assert read_statistics(tmp_path / "a.pkl", extractor).num_images == 30
    with pytest.raises(ValueError, match="named fd_dinov2, fid, and RawPixels has no published name"):
        read_statistics(tmp_path / "a.pkl", RawPixels())


def test_mismatched_statistics_raise(tmp_path: Path) -> None:
    folder, real = tmp_path / "cache", points(30)
    distance(FrechetDistance(Counted(), cache=str(folder)), real, points(40, 1))
    (file,) = map(str, folder.iterdir())
    changed = Counted()
    changed.matrix[0, 0] += 1
    with pytest.raises(ValueError, match="are those of another extractor: Counted, weights .*; expected Counted, weig"):
        FrechetDistance(changed, statistics=file).prepare([])
    with pytest.raises(ValueError, match="another extractor: Counted, weights .*; expected RawPixels, no weights"):
        FrechetDistance(RawPixels(), statistics=file).prepare([])
    right = FrechetDistance(Counted(), statistics=file)
    right.prepare([])
    with pytest.raises(ValueError, match=r"fd: .* of data of shape \(3,\), the samples have shape \(3, 2\)"):
        right.update(torch.zeros(5, 3, 2))
    np.savez(tmp_path / "wide.npz", **published(torch.randn(20, 6)))
    wide = FrechetInterval(Counted(), name="fid", statistics=str(tmp_path / "wide.npz"))
    with pytest.warns(UserWarning, match="does not name its extractor"):
        wide.prepare([])
    with pytest.raises(ValueError, match="fid: the reference statistics are those of 6 features, Counted returns 4"):
        wide.update(points(2))
    with pytest.raises(ValueError, match="expected statistics or cache, got both"):
        FrechetDistance(Counted(), statistics="a", cache="b")
    (tmp_path / "fid.pkl").write_bytes(pickle.dumps({"fid": published(torch.randn(20, 6))}))
    with pytest.raises(ValueError, match="weights of Inception-v3: there is no file nowhere.pth"):
        FrechetDistance(InceptionFeatures("nowhere.pth"), statistics=str(tmp_path / "fid.pkl")).prepare([])
    with pytest.raises(ValueError, match="reference statistics: there is no file nowhere.npz"):
        FrechetDistance(Counted(), statistics="nowhere.npz").prepare([])


def test_files_without_a_gaussian_raise(tmp_path: Path) -> None:
    good = published(torch.randn(20, 4))
    asymmetric, negative = good["sigma"].copy(), good["sigma"].copy()
    asymmetric[0, 1] += 1
    negative[0, 0] = -1
    for content, sentence in (
        ({"mu": good["mu"]}, r"has no sigma; expected mu and sigma, found \['mu'\]"),
        ({"mu": good["mu"][:3], "sigma": good["sigma"]}, r"holds mu float64 \(3,\) and sigma float64 \(4, 4\); expect"),
        ({"mu": good["mu"], "sigma": asymmetric}, "is not a covariance"),
        ({"mu": good["mu"], "sigma": negative}, "is not a covariance"),
        ({"mu": good["mu"] * np.nan, "sigma": good["sigma"]}, "is not a covariance"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "is not a covariance"),
        ({"mu": np.array(["x"] * 4), "sigma": good["sigma"]}, "expected floats"),
        ({"mu": good["mu"], "sigma": np.eye(4) + 5 * np.eye(4)[::-1]}, "no correlation above 1"),
        (good | {"num_images": [1, 2]}, "f.npz has no valid provenance: TypeError"),
        (good | {"num_images": "many"}, "has no valid provenance: ValueError"),
        (good | {"extractor": "Counted"}, "has no valid provenance: KeyError: 'weights'"),
    ):
        np.savez(tmp_path / "f.npz", **content)
        with pytest.raises(ValueError, match=sentence):
            read_statistics(tmp_path / "f.npz", Counted())
    np.savez(tmp_path / "object.npz", mu=np.array([print], dtype=object), sigma=good["sigma"])
    with pytest.raises(ValueError, match="object.npz cannot be read as statistics: 'mu' in it .* holds Python objects"):
        read_statistics(tmp_path / "object.npz", Counted())


class Attack:
    """Object that calls a function when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_pickles_execute_nothing(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "f.pkl"
    loop: dict[str, Any] = {}
    loop["fid"] = loop
    array = np.zeros(2)
    array_of_objects = np.array([Attack(Path.mkdir, marker)], dtype=object)
    for content, sentence in (
        (Attack(Path.mkdir, marker), r"cannot be read as a file of reference statistics: it asks for pathlib.*mkdir"),
        ({"fid": Attack(eval, "1")}, "it asks for builtins.eval, which no file of reference statistics needs; nothing"),
        ({"fid": {"mu": array_of_objects}}, "it asks for|an array of"),
        ({"fid": {"mu": array.astype("O")}}, "it holds an array of 'O8', expected numbers"),
        ({"fid": {"mu": array.astype([("a", "f8")])}}, "it holds an array of 'V8', expected numbers"),
        ({"fid": {"mu": np.frombuffer}}, "it asks for numpy"),
        (loop, "has no mu and no sigma"),
        ([1, 2], "holds statistics named nothing"),
        ({"fid": 3.0}, "holds statistics named nothing"),
    ):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            read_statistics(file, Counted())
    assert not marker.exists()
    file.write_bytes(pickle.dumps({"fid": published(torch.randn(5, 4))})[:-40])
    with pytest.raises(ValueError, match=r"f\.pkl cannot be read as a file of reference statistics"):
        read_statistics(file, Counted())


def test_stored_statistics_need_no_data(tmp_path: Path) -> None:
    extractor = ModuleFeatures(nn.Flatten())
    np.savez(tmp_path / "f.npz", **published(torch.randn(20, 12)))
    metric = FrechetDistance(extractor, statistics=str(tmp_path / "f.npz"))
    imported = NoData([3, 2, 2])
    with pytest.warns(UserWarning, match="does not name its extractor"):
        metric.prepare(imported.reference(torch.device("cpu")))
    metric.update(torch.randint(256, (20, 3, 2, 2), dtype=torch.uint8))
    assert metric.compute()["fd"] > 0
    with pytest.raises(ValueError, match="NoData has no examples"):
        FrechetDistance(extractor).prepare(imported.reference(torch.device("cpu")))


# Two processes


def prepare_together(folder: str) -> None:
    """Run one of two processes: statistics computed, cached, of a single batch, and cached by one process only."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    records: list[tuple[int, float]] = []
    for count, cache in ((30, "new"), (30, "new"), (9, "new"), (30, f"own-{rank}")):
        extractor = Counted()
        metric = FrechetDistance(extractor, cache=f"{folder}/{cache}")
        metric.prepare(batches(points(count), 10))
        seen = extractor.seen
        metric.update(points(40, 1)[rank::2])
        records.append((seen, float(metric.compute()["fd"])))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(records))
    dist.destroy_process_group()


def test_processes_share_the_work_and_have_the_same_statistics(processes: Processes, tmp_path: Path) -> None:
    (many, few), samples = (points(30), points(9)), points(40, 1)
    FrechetDistance(Counted(), cache=f"{tmp_path}/own-1").prepare(batches(many))  # rank 0 has no file there
    call = ("tests.test_evaluation_reference_statistics", "prepare_together")
    processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path))
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    plain = [distance(FrechetDistance(Counted()), real, samples) for real in (many, many, few, many)]
    for records in (one, two):
        assert [value for _, value in records] == pytest.approx(plain, rel=1e-10)
    # of three batches rank 0 takes the first and the third, rank 1 the second, and the first for its width
    assert [seen for seen, _ in one] == [20, 0, 9, 20] and [seen for seen, _ in two] == [20, 0, 9, 20]
