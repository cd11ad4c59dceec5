"""`lightning-guide score` and `compare`: against torch-fidelity and clean-fid, of all kinds of places, interrupted."""

from __future__ import annotations

import json
import math
import resource
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cleanfid.fid
import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from datamodules.commands.score import score
from lightning_guide.cli import main
from lightning_guide.data import Batch
from lightning_guide.evaluation import FrechetDistance
from lightning_guide.evaluation.reference.statistics import write_statistics
from lightning_guide.evaluation.scoring import MetricName, Scorer
from lightning_guide.utils.images import encode_png
from tests.features import RandomFeatures, RandomNetwork
from tests.processes import Processes
from tests.scored_sets import Brightness, LabeledMeans, images, scored, values, write

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


ALSO = [Brightness(), LabeledMeans()]


class OfTorchFidelity(FeatureExtractorBase):
    """The same network for torch-fidelity."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = RandomNetwork()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the name for a metric."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Return no."""
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what is wanted."""
        features = self.network((x.float() / 255 - 0.5) / 0.5)
        found = {"features": features, "logits": features @ self.network.head}
        return tuple(found[name] for name in self.features_list)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `real`, 300 images, and `fake`, 260 others."""
    folder = tmp_path_factory.mktemp("sets")
    write(folder / "real", images(300, 0))
    write(folder / "fake", images(260, 1, contrast=1.2))
    return folder


def expected_of_torch_fidelity(real: Path, fake: Path, count: int) -> dict[str, float]:
    """Return the metrics of torch-fidelity, KID on one subset of all samples."""
    torch_fidelity.register_feature_extractor("random-network", OfTorchFidelity)
    found = torch_fidelity.calculate_metrics(
        input1=str(fake), input2=str(real), cuda=False, isc=True, fid=True, kid=True, prc=True, isc_splits=1,
        kid_subsets=1, kid_subset_size=count, feature_extractor="random-network", samples_find_deep=True,
        verbose=False, cache=False, batch_size=100, save_cpu_ram=True,
    )  # fmt: skip
    return {
        "fd": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "inception_score": found["inception_score_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def compared(ours: dict[str, float], expected: dict[str, float]) -> None:
    """Check all that `expected` has."""
    assert {name: ours[name] for name in expected} == {
        name: pytest.approx(value, rel=1e-3) for name, value in expected.items()
    }


def test_numbers_are_those_of_torch_fidelity(places: Path, tmp_path: Path) -> None:
    write(tmp_path / "equal", images(300, 1, contrast=1.2))  # one subset of all samples needs equal numbers
    ours = values(scored(tmp_path / "equal", against=places / "real", out=tmp_path))
    compared(ours, expected_of_torch_fidelity(places / "real", tmp_path / "equal", 300))


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_numbers_are_those_of_clean_fid_with_its_resizing(count: int, places: Path, tmp_path: Path) -> None:
    small = [write(tmp_path / name, images(n, seed, size=30)) for name, seed, n in (("a", 2, count), ("b", 3, 40))]
    theirs = cleanfid.fid.compute_fid(
        str(small[0]), str(small[1]), mode="clean", custom_feat_extractor=RandomNetwork(), num_workers=0,
        device=torch.device("cpu"), use_dataparallel=False, verbose=False,
    )  # fmt: skip
    result = scored(small[0], against=small[1], out=tmp_path, size=299, rounded=False, metrics=["fd"])
    assert values(result)["fd"] == pytest.approx(theirs, rel=1e-3)
    assert result["resize"] == "clean-fid to 299x299, not rounded"


def test_every_kind_of_place_gives_the_same_numbers(places: Path, tmp_path: Path) -> None:
    x = images(260, 1, contrast=1.2)
    with zipfile.ZipFile(tmp_path / "fake.zip", "w") as archive:
        for path in sorted((places / "fake").rglob("*.png")):
            archive.write(path, path.relative_to(places / "fake"))
    for shard, rows in enumerate((range(100), range(100, 260))):
        with tarfile.open(tmp_path / f"samples-{shard}.tar", "w") as tar:
            for row in rows:
                tar.add(places / f"fake/000000/{row:06d}.png", f"{row:06d}.png")
    np.savez(tmp_path / "adm.npz", x.permute(0, 2, 3, 1).numpy())
    np.savez_compressed(tmp_path / "predicted.npz", x=x.numpy(), index=np.arange(260), condition=np.zeros(260))
    alone = scored(places / "fake", against=places / "real", out=tmp_path)
    others: list[Path | str] = [
        tmp_path / "fake.zip",
        f"{tmp_path}/samples-*.tar",
        tmp_path / "adm.npz",
        tmp_path / "predicted.npz",
    ]
    together = scored(*others, against=places / "real", out=tmp_path, resamples=2)
    for place in others:
        assert values(together, place) == pytest.approx(values(alone), rel=1e-9, abs=1e-12)
        assert together["sets"][str(place)]["data"] == alone["sets"][str(places / "fake")]["data"]
    differences = [each["paired"] for each in together["differences"].values()]
    assert differences == [True, False, True]  # arr_0 has no names
    paired = together["differences"][f"{others[1]} - {others[0]}"]["metrics"]["fd"]
    assert abs(paired["value"]) < 1e-9 and paired["high"] - paired["low"] < 1e-9
    independent = together["differences"][f"{others[2]} - {others[0]}"]["metrics"]["fd"]
    assert independent["high"] - independent["low"] > 1e-3


def test_files_of_statistics_are_a_reference_for_fd(places: Path, tmp_path: Path) -> None:
    extractor = RandomFeatures()
    fitted = FrechetDistance(extractor).fit([Batch(images(300, 0))])
    write_statistics(tmp_path / "own.npz", replace(fitted, extractor=extractor.identity))
    np.savez(tmp_path / "published.npz", mu=fitted.mean.numpy(), sigma=fitted.covariance.numpy())
    expected = values(scored(places / "fake", against=places / "real", out=tmp_path))["fd"]
    own = scored(places / "fake", against=tmp_path / "own.npz", out=tmp_path)
    assert own["against"]["count"] == 300 and list(values(own)) == ["fd", "vendi", "inception_score"]
    assert values(own)["fd"] == pytest.approx(expected, rel=1e-6)
    with pytest.warns(UserWarning, match="published.npz does not name its extractor"):
        found = scored(places / "fake", against=tmp_path / "published.npz", out=tmp_path)
    assert values(found)["fd"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="kid needs the examples of the reference; its statistics suffice for fd"):
        scored(places / "fake", against=tmp_path / "own.npz", out=tmp_path, metrics=["kid"])
    gray = write(tmp_path / "gray", images(60, 1)[:, :1])
    with pytest.raises(ValueError, match=r"are those of data of shape \(3, 20, 20\), .*gray has \(1, 20, 20\)"):
        scored(gray, against=tmp_path / "own.npz", out=tmp_path)


def test_an_interrupted_run_extracts_only_what_is_missing(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.sample_sets.PART_BYTES", 100 * 3 * 20 * 20)  # 100 images
    extractor = RandomFeatures()
    whole = scored(places / "fake", against=places / "real", out=tmp_path, extractor=extractor)
    stored = list((tmp_path / "s.features").iterdir())
    assert len(stored) == 3 + 3
    stored[0].unlink()
    seen: list[int] = []
    extract = extractor.extract

    def counting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return extract(x)

    monkeypatch.setattr(extractor, "extract", counting)
    assert scored(places / "fake", against=places / "real", out=tmp_path, extractor=extractor) == whole
    assert sum(seen) <= 1 + 100  # one image tells the width


def test_intervals_are_those_of_independent_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    names: list[MetricName] = ["fd", "kid", "precision_recall"]
    options: dict[str, Any] = {"width": 4, "device": torch.device("cpu")}
    real = torch.randn(300, 4, generator=generator)
    once, halves = Scorer(names, real, resamples=0, **options), Scorer(names, real, resamples=20, **options)
    sets = [torch.randn(150, 4, generator=generator) * 1.3 + 0.5 for _ in range(60)]
    scores = [once.score(each) for each in sets]
    estimates = [halves.score(each).estimates() for each in sets[:6]]
    for name, least, most in (("fd", 0.0, math.inf), ("precision", 0.0, 1.0), ("recall", 0.0, 1.0)):
        for each in estimates:
            assert least <= (each[name].low or 0.0) <= each[name].value <= (each[name].high or 0.0) <= most, name
    for name in ("fd", "kid", "precision"):  # recall, which is no mean over samples, gets up to half more
        spread = float(np.std([each.values[name] for each in scores], ddof=1)) * 1.96
        margins = [((each[name].high or 0.0) - (each[name].low or 0.0)) / 2 for each in estimates]
        assert sum(margins) / 6 == pytest.approx(spread, rel=0.4), name


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("damaged", r"damaged holds 1 damaged file: 000000/000003.png \(.*checksum"),
        ("shapes", r"000004.png in .*shapes has shape \(3, 9, 9\), the first sample \(3, 20, 20\); expected one shape"),
        ("few", "few holds 5 samples; density_coverage needs 12, 6 in each half; --resamples 0 needs 6"),
        ("empty", "empty holds no samples; expected images"),
        ("cut.npz", "cut.npz cannot be read as samples"),
        ("other.npz", r"other.npz holds weights; expected x \(N, \*\) as predict writes it, or arr_0"),
        ("twice", "a set is named twice"),
    ],
)
def test_bad_sets_are_refused_in_one_sentence(places: Path, tmp_path: Path, case: str, sentence: str) -> None:
    place = tmp_path / case
    if case == "other.npz":
        np.savez(place, weights=np.zeros(3))
    elif case == "cut.npz":
        np.savez(tmp_path / "whole.npz", np.zeros((30, 4, 4, 3), np.uint8))
        place.write_bytes((tmp_path / "whole.npz").read_bytes()[:700])
    else:
        write(place, images({"few": 5, "empty": 0}.get(case, 20), 1)).mkdir(exist_ok=True)
    if case == "damaged":
        file = place / "000000/000003.png"
        data = bytearray(file.read_bytes())
        data[60] ^= 1
        file.write_bytes(bytes(data))
    if case == "shapes":
        (place / "000000/000004.png").write_bytes(encode_png(images(1, 1, size=9)[0]))
    both = [place, place] if case == "twice" else [place]
    with pytest.raises(ValueError, match=sentence):
        scored(*both, against=places / "real", out=tmp_path, resamples=2)
    assert not (tmp_path / "s.json").exists()


def test_command_prints_a_table_and_where_the_results_are(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(places)
    options = ["--extractor", "RawPixels", "--size", "4", "--resize", "area", "--resamples", "3", "--device", "cpu"]
    out = str(tmp_path / "out.json")
    main(["compare", "fake", "real", "--against", "real", "--metrics", "fd,kid", *options, "--out", out])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fake", "real", "real", "-", "fake"]
    assert [line.split()[0] for line in lines[2:4]] == ["fd", "kid"] and lines[2].count("[") == 3
    assert lines[4] == "against real, 300 samples; RawPixels, no weights; area to 4x4"
    assert lines[5:7] == ["fake, 260 samples", "real, 300 samples"]
    assert lines[-1] == f"score has ended; results {out}; features {tmp_path / 'out.features'}"
    result = json.loads(Path(out).read_text())
    assert result["sets"]["real"]["metrics"]["fd"]["value"] == pytest.approx(0, abs=1e-9)
    assert result["extractor"] == {"name": "RawPixels", "weights": ""}


def score_of_rank(folder: str, out: str) -> None:
    """Score on one of several processes."""
    place, file = Path(folder), str(Path(out) / "s.json")
    options: dict[str, Any] = {"extractor": RandomFeatures(), "device": "cpu", "resamples": 4, "also": ALSO}
    score([str(place / "fake")], against=str(place / "real"), out=file, **options)  # the other rank may write it later


@pytest.mark.slow
def test_two_processes_agree_with_one(places: Path, processes: Processes, tmp_path: Path) -> None:
    call = ("tests.test_commands_score", "score_of_rank")
    (tmp_path / "two").mkdir()
    processes.call_ranks(2, call, tmp_path / "log", folder=str(places), out=str(tmp_path / "two"))
    two = json.loads((tmp_path / "two" / "s.json").read_text())
    one = scored(places / "fake", against=places / "real", out=tmp_path, resamples=4, also=ALSO)
    for place, each in one["sets"].items():
        for name, expected in each["metrics"].items():
            found = two["sets"][place]["metrics"][name]
            numbers = {key: value for key, value in expected.items() if isinstance(value, float)}
            assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=1e-6, abs=1e-9)
            assert found.keys() == expected.keys()
            assert {key for key in found if isinstance(found[key], float)} == {*numbers}


@pytest.mark.slow
def test_ten_thousand_files_agree_and_the_memory_is_bounded(tmp_path: Path) -> None:
    real, fake = (
        write(tmp_path / name, images(10_000, seed, contrast=contrast))
        for name, seed, contrast in (("real", 0, 1.0), ("fake", 1, 1.2))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = values(scored(fake, against=real, out=tmp_path, batch_size=256, also=[Brightness()]))
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert used < 1500  # MiB: rows of 10,000 distances, 1024 at a time, and their order
    compared(ours, expected_of_torch_fidelity(real, fake, 10_000))
