"""`lightning-guide verify extractors`: numbers of fixed images, compared with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_guide.cli import main
from lightning_guide.commands.verify import verify
from lightning_guide.evaluation import (
    ClassifierFeatures,
    ClipFeatures,
    DINOv2Features,
    InceptionFeatures,
    RawPixels,
    TimmFeatures,
)
from lightning_guide.evaluation.features.self_check import fixed_image
from lightning_guide.networks import SmallClassifier
from tests.features import RandomFeatures


def numbers(path: Path) -> dict[str, Any]:
    """Return the numbers of the one extractor of a file."""
    (found,) = json.loads(path.read_text())["extractors"].values()
    return dict(found)


def test_a_file_of_another_machine_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "numbers.json")
    verify("extractors", extractors=[RandomFeatures()], out=out, device="cpu")
    shown = capsys.readouterr().out
    found = numbers(tmp_path / "numbers.json")
    features = RandomFeatures()(fixed_image(3, 32, 32))[0]
    assert found["32"]["features"] == pytest.approx(features.tolist(), rel=1e-6)
    assert found["256"]["norm"] == pytest.approx(float(RandomFeatures()(fixed_image(3, 256, 256)).norm()), rel=1e-6)
    assert f"hash {found['32']['hash']}" in shown and "comparable: results of the same extractor" in shown
    verify("extractors", extractors=[RandomFeatures()], expect=out, device="cpu")
    assert "all 8 numbers of" in capsys.readouterr().out


def test_deviations_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, title = tmp_path / "by_hand.json", RandomFeatures().title()
    features = RandomFeatures()(fixed_image(3, 32, 32))[0]
    by_hand = {"features": (features + 3e-3 * features.norm() / 32**0.5).tolist()}  # a deviation of 3e-3
    path.write_text(json.dumps({"extractors": {title: {"32": by_hand, "weights": "0" * 64}, "Other(x)": {}}}))
    options: dict[str, Any] = {"extractors": [RandomFeatures()], "expect": str(path), "device": "cpu"}
    with pytest.raises(ValueError, match=r"1 of 1 numbers deviate by more than 0.001: .*features at size 32$"):
        verify("extractors", **options)
    shown = capsys.readouterr().out
    assert "other weights, 0000" in shown and "Other(x): not compared" in shown and "deviation 0.003 of" in shown
    verify("extractors", tolerance=0.004, **options)
    for content, sentence in (
        ({"extractors": {title: {"32": {"features": [1.0]}}}}, "deviate by more than"),
        ({"extractors": {title: {"32": {"norm": "big"}}}}, "'big' is not a number"),
        ({"extractors": {"Other(x)": {}}}, r"holds numbers of Other\(x\); expected RandomFeatures"),
        ({"numbers": 1}, "holds no expected numbers"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            verify("extractors", **options)
    with pytest.raises(ValueError, match="there is no file"):
        verify("extractors", extractors=[RandomFeatures()], expect=str(tmp_path / "absent.json"))


def test_nothing_is_downloaded_unasked_and_absent_weights_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (InceptionFeatures, TimmFeatures, ClipFeatures):
        monkeypatch.setattr(kind, "_load", lambda _: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="no extractor has its weights"):
        verify("extractors", device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "InceptionFeatures",
        "DINOv2Features(vit_large_patch14_dinov2, size 224)",
        "ClipFeatures(ViT-L-14-336)",
    ]
    assert all("--download true lets its package fetch them" in line for line in lines)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no extractor has its weights"):
        verify("extractors", extractors=[InceptionFeatures("absent.pth")], device="cpu")
    assert "left out, weights of Inception-v3: there is no file absent.pth" in capsys.readouterr().out


def test_what_published_figures_compare_with() -> None:
    assert "FD_DINOv2" in DINOv2Features().comparable() and "same" in DINOv2Features(size=518).comparable()
    assert "CMMD" in ClipFeatures().comparable() and "same" in ClipFeatures("ViT-B-32").comparable()
    assert "clean-fid after --size 299" in InceptionFeatures().comparable()


def test_the_images_are_bytes_with_waves_and_texture() -> None:
    for side in (256, 32):
        x = fixed_image(3, side, side)
        assert x.dtype == torch.uint8 and x.shape == (1, 3, side, side)
        assert x.float().std() > 30 and not torch.equal(x[:, 0], x[:, 1])


def test_a_classifier_is_shown_an_image_of_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SmallClassifier([1, 6, 8], num_classes=2, widths=[8])
    monkeypatch.setattr(ClassifierFeatures, "_load", lambda _: network)
    extractor = ClassifierFeatures("run")
    verify("extractors", extractors=[extractor], out=str(tmp_path / "numbers.json"), device="cpu")
    expected = extractor(fixed_image(1, 6, 8))[0].tolist()
    assert numbers(tmp_path / "numbers.json")["1x6x8"]["features"] == pytest.approx(expected, rel=1e-6)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "raw.json"
    main(["verify", "extractors", "--extractors+=RawPixels", "--out", str(out), "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[0] == "RawPixels, no weights"
    expected = RawPixels()(fixed_image(3, 32, 32))[0].tolist()
    assert numbers(out)["32"]["features"] == pytest.approx(expected, rel=1e-6)
