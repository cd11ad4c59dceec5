"""`score --also`, JSON of numbers that are none, and the table."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.commands.score_table import score_table
from lightning_guide.evaluation import KernelDistance
from lightning_guide.utils.images import encode_png
from tests.features import RandomFeatures
from tests.scored_sets import Brightness, LabeledMeans, images, scored, values, write


def test_metrics_of_images_and_labels_join_the_table(tmp_path: Path) -> None:
    write(tmp_path / "real", images(40, 0))
    x, labels = images(60, 1), torch.arange(60) % 3 - 1
    np.savez(tmp_path / "a.npz", x=x.numpy(), index=np.arange(60), condition=labels.numpy())
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for row in range(60):
            for ending, data in (("png", encode_png(x[row] // 2)), ("cls", str(int(labels[row])).encode())):
                if ending == "png" or labels[row] >= 0:
                    member = tarfile.TarInfo(f"{row:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    places_of = (tmp_path / "a.npz", tmp_path / "b.tar")
    options: dict[str, Any] = {"metrics": ["fd"], "batch_size": 7, "also": [LabeledMeans(), Brightness()]}
    result = scored(*places_of, against=tmp_path / "real", out=tmp_path, **options)
    for place, pixels in zip(places_of, (x, x // 2), strict=True):
        means = pixels.double().mean((1, 2, 3))
        labeled = means[labels >= 0]
        expected = {"labeled": labeled.mean().item(), "all": means.mean().item(), "brightness": labeled.mean().item()}
        assert {name: values(result, place)[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    (difference,) = result["differences"].values()
    assert difference["metrics"]["all"]["value"] < -10 and difference["metrics"]["all"]["low"] is None
    # intervals of means are those of the standard error, of paired differences those of their own spread
    sure = scored(*places_of, against=tmp_path / "real", out=tmp_path, **(options | {"resamples": 200}))
    ends = sure["sets"][str(places_of[0])]["metrics"]["brightness"]
    labeled = x.double().mean((1, 2, 3))[labels >= 0]
    assert ends["high"] - ends["low"] == pytest.approx(2 * 1.96 * labeled.std().item() / len(labeled) ** 0.5, rel=0.2)
    (difference,) = sure["differences"].values()
    apart = (x // 2).double().mean((1, 2, 3))[labels >= 0] - labeled
    ends = difference["metrics"]["brightness"]
    assert ends["high"] - ends["low"] == pytest.approx(2 * 1.96 * apart.std().item() / len(labeled) ** 0.5, rel=0.2)
    with pytest.raises(ValueError, match="KernelDistance compares with a reference"):
        scored(places_of[0], against=tmp_path / "real", out=tmp_path, also=[KernelDistance(RandomFeatures())])


def test_what_is_undefined_is_null_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "real", images(20, 0))
    np.savez(tmp_path / "a.npz", x=images(20, 1).numpy(), index=np.arange(20), condition=-np.ones(20, np.int64))
    options: dict[str, Any] = {"metrics": ["fd"], "also": [Brightness(), LabeledMeans()], "resamples": 4}
    scored(tmp_path / "a.npz", against=tmp_path / "real", out=tmp_path, **options)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads((tmp_path / "s.json").read_text(), parse_constant=refuse)
    found = next(iter(result["sets"].values()))["metrics"]
    for name in ("brightness", "labeled"):
        assert found[name] == {
            "value": None, "low": None, "high": None, "reason": "nan: undefined for these samples, as a mean of none is"
        }  # fmt: skip
    row = next(line for line in score_table(result).splitlines() if line.startswith("brightness"))
    assert row.split() == ["brightness", "nan"]


def test_table_is_narrow_and_shows_digits_that_mean_something() -> None:
    places = ["/data/runs/long/name/a/samples/cfg-seed0", "/data/runs/long/name/b/samples/cfg-seed0"]
    metrics = {
        "fd": {"value": 1234.5678, "low": 1200.0, "high": 1270.0},
        "kid": {"value": 1 / 3, "low": None, "high": None},
    }
    apart = {"fd": {"value": -0.00123, "low": -0.0031, "high": 0.0007}, "kid": metrics["kid"]}
    result = {
        "sets": {place: {"metrics": metrics, "count": 10} for place in places},
        "differences": {f"{places[1]} - {places[0]}": {"paired": True, "metrics": apart}},
        "against": {"place": "real", "count": None},
        "extractor": {"name": "RawPixels", "weights": ""},
        "resize": "not resized",
    }
    lines = score_table(result).splitlines()
    assert lines[0].split("  ")[-1].strip() == "b/samples/cfg-seed0 - a/samples/cfg-seed0 (paired)"
    assert lines[2].split() == [*"fd 1235 [1200, 1270] 1235 [1200, 1270] -0.0012 [-0.0031, 0.0007]".split()]
    assert lines[3].split() == ["kid", "0.3333", "0.3333", "0.3333"]
    assert lines[5] == f"a/samples/cfg-seed0: {places[0]}, 10 samples"
