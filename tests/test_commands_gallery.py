"""Gallery: applicable methods in one image, the same samples in every row."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_guide.cli import main
from lightning_guide.commands.gallery import gallery
from lightning_guide.report.run_page import run_page
from tests.event_files import opened

ROOT = Path(__file__).parent.parent
SMALL = {
    "trainer": {"max_steps": 2, "limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False},
    "model": {"init_args": {"evaluations": {"plain": {"num_samples": 100}}, "metrics": {}}},
    "data": {"init_args": {"batch_size": 8}},
}


def contents(folder: Path) -> dict[Path, int]:
    """All files and folders in `folder` with the times of their last change."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def methods(path: Path, **guidances: dict) -> str:
    """A file of guidances."""
    path.write_text(yaml.safe_dump({"model": {"init_args": {"guidances": guidances}}}))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on the digits."""
    folder = tmp_path_factory.mktemp("gallery")
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(SMALL))
    words = ["fit", "-c", str(ROOT / "configs/digits/main.yaml"), "-c", str(small)]
    main([*words, "--trainer.default_root_dir", str(folder / "run")])
    return folder / "run"


@pytest.mark.filterwarnings("ignore:.*has the weight 1")
def test_what_fits_is_drawn_and_the_rest_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guider = {"class_path": "Snapshot", "init_args": {"images": 1000}}
    unfit = {"class_path": "Autoguidance", "init_args": {"guider": guider}}
    file = methods(
        tmp_path / "methods.yaml",
        off={"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 1}},
        scaled={"class_path": "ScoreScaling", "init_args": {"scale": 0.5}},
        missing=unfit,
        odd={"class_path": "SkipLayerGuidance", "init_args": {"layers": ["input"]}},
    )
    out, before = tmp_path / "out", contents(run)
    words = ["gallery", str(run), json.dumps([file]), "--out", str(out), "--count", "3", "--labels", "4"]
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *words])
    main()
    printed = capsys.readouterr().out
    assert "left out: missing" in printed
    assert "left out: odd (SkipBlocks cannot skip input: it turns" in printed, "found by one evaluation"
    results = json.loads((out / "metrics.json").read_text())
    assert list(results) == ["plain", "off", "scaled"]
    assert [results[name]["nfe"] for name in results] == [63, 63, 63], "w = 1 calls no negative"
    assert all(values["samples"] == 3 for values in results.values())
    image = np.asarray(Image.open(out / "gallery.png").convert("L")).astype(int)
    third = image.shape[0] // 3
    rows = [image[i * third : (i + 1) * third, 220:] for i in range(3)]  # to the right of the labels
    assert np.abs(rows[0] - rows[1]).max() <= 2, "w = 1 is the unguided row"
    assert np.abs(rows[0] - rows[2]).max() > 20
    (event,) = opened(out / "tensorboard/version_0").Images("gallery")
    assert event.step == 2 and contents(run) == before, "the run is only read"
    label = yaml.safe_load((out / "gallery.yaml").read_text())["model"]["init_args"]["evaluations"]["plain"]["labels"]
    assert label == 4


def test_a_label_that_the_model_lacks_is_named_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    before, file = contents(run), methods(tmp_path / "a.yaml", scaled={"class_path": "ScoreScaling"})
    for labels, count, message in (
        (10, 2, "label 10 is out of range: there are 10 classes"),
        (0, 0, "num_samples >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            gallery(str(run), [file], labels=labels, count=count)
    assert contents(run) == before


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    one = {"class_path": "ScoreScaling"}
    a, b = methods(tmp_path / "a.yaml", same=one), methods(tmp_path / "b.yaml", same=one)
    with pytest.raises(ValueError, match="b.yaml names the guidance 'same', which another file names"):
        gallery(str(run), [a, b])
    (tmp_path / "empty.yaml").write_text("trainer: {}\n")
    with pytest.raises(ValueError, match="empty.yaml names no guidances"):
        gallery(str(run), [str(tmp_path / "empty.yaml")])
    with pytest.raises(ValueError, match="config.yaml does not exist"):
        gallery(str(tmp_path), [a])
    with pytest.raises(ValueError, match="no guidances in nothing"):
        gallery(str(run), [])
    unknown = methods(tmp_path / "d.yaml", what={"class_path": "NoSuchGuidance"})
    with pytest.raises(ValueError, match="NoSuchGuidance"):
        gallery(str(run), [unknown])
    guider = {"class_path": "Snapshot", "init_args": {"images": 1000}}
    unfit = methods(tmp_path / "c.yaml", missing={"class_path": "Autoguidance", "init_args": {"guider": guider}})
    with pytest.raises(ValueError, match="none of the guidances missing fits"):
        gallery(str(run), [unfit])


def test_texts_are_those_of_the_data(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stable Diffusion's U-Net takes 77 tokens alone; ICG draws from the prompts of the data."""
    folder, out = tiny_pipeline("sd"), tmp_path / "run"
    main(["import", "diffusers", str(folder), str(out), "--num_steps", "2"])
    faulty = {"class_path": "Pretrained", "init_args": {"source": f"diffusers:{folder}", "data_shape": [3, 8, 8]}}
    file = methods(
        tmp_path / "methods.yaml",
        wrong={"class_path": "Autoguidance", "init_args": {"guider": faulty}},
        cfg={"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 3.0}},
        icg={"class_path": "IndependentConditionGuidance", "init_args": {"weight": 3.0}},
    )
    main(["gallery", str(out), file, "--count", "2"])
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    (reason,) = left
    assert reason.startswith("left out: wrong (") and "data_shape of UNet2DConditionModel is (3, 8, 8)" in reason
    assert list(json.loads((out / "gallery/methods/metrics.json").read_text())) == ["unguided", "cfg", "icg"]


def test_no_gallery_replaces_another(run: Path, tmp_path: Path) -> None:
    place = shutil.copytree(run, tmp_path / "run")
    (place / "gallery").mkdir()
    Image.new("RGB", (2, 2)).save(place / "gallery/gallery.png")  # of the callback
    file = methods(tmp_path / "own.yaml", scaled={"class_path": "ScoreScaling"})
    for seed in (0, 1, 0):  # the same settings have the same folder
        gallery(str(place), [file], count=1, seed=seed)
    kept = sorted(str(path.relative_to(place)) for path in place.rglob("gallery.png"))
    assert kept == [f"gallery/{name}gallery.png" for name in ("", "own-2/", "own/")]
    assert Image.open(place / "gallery/gallery.png").size == (2, 2)
    seeds = [yaml.safe_load((place / f"gallery/{name}/gallery.yaml").read_text()) for name in ("own", "own-2")]
    assert [each["model"]["init_args"]["evaluations"]["plain"]["seed"] for each in seeds] == [0, 1]
    page = run_page(place)
    assert all(f">{name}<" in page for name in ("gallery", "gallery own", "gallery own-2"))
