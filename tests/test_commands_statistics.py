"""`lightning-guide statistics`: a file made once is as good as the data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import Digits
from lightning_guide.cli import main
from lightning_guide.evaluation import FrechetDistance, RawPixels


def test_the_file_is_as_good_as_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["statistics", "out/digits.npz", "--data", "Digits", "--extractor", "RawPixels", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *words])
    main()
    data = Digits()
    real = torch.stack([x for x, _ in data.training()]).double().flatten(1).numpy() / 127.5 - 1
    assert f"out/digits.npz: {len(real):,} examples, RawPixels, no weights" in capsys.readouterr().out
    with np.load("out/digits.npz") as file:
        np.testing.assert_allclose(file["mu"], real.mean(0), atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(real, rowvar=False), atol=1e-5)
        assert int(file["num_images"]) == len(real) and file["data_shape"].tolist() == [1, 8, 8]
    samples = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8)
    found = []
    for metric in (FrechetDistance(RawPixels()), FrechetDistance(RawPixels(), statistics="out/digits.npz")):
        metric.prepare(data.reference(torch.device("cpu")))
        metric.update(samples)
        found.append(float(metric.compute()["fd"]))
    assert found[0] == pytest.approx(found[1], rel=1e-10)
    with pytest.raises(SystemExit, match="out/digits.npz exists; expected the name of a new file"):
        main(words)
