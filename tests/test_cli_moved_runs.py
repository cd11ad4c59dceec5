"""A run is where its folder is: copied, renamed, linked, on a read-only disk, with its original there or gone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_guide as lg
from lightning_guide.cli import main
from tests.disks import forked, make_read_only, said
from tests.searches import PIXELS, SEARCH
from tests.test_cli import TINY

SMALL = SEARCH | {
    "axes": {"weight": {"path": "guidance.init_args.weight", "values": [2, 3]}},
    "metrics": {"fd": {"class_path": "FrechetDistance", "init_args": PIXELS}},
    "objectives": {"fd": "lowest"},
    "block": 3,
    "blocks": 2,
}


def settings(root: Path) -> dict[str, Any]:
    """A run in `root`/runs/main with absolute paths in all places, guided by itself and by its sibling."""

    def guided(run: str) -> dict[str, Any]:
        snapshot = {"class_path": "Snapshot", "init_args": {"run": run, "images": "1/1", "sigma_rel": 0.1}}
        return {"num_samples": 3, "guidance": {"class_path": "Autoguidance", "init_args": {"guider": snapshot}}}

    main_run = str(root / "runs/main")
    board = {"save_dir": main_run, "name": "tensorboard", "version": "", "default_hp_metric": False}
    callbacks = [
        {"class_path": "PostHocEMA", "init_args": {"every_images": 8}},
        {"class_path": "MetricsReport", "init_args": {"folder": f"{main_run}/own/report"}},
        {"class_path": "SampleGrid", "init_args": {"count": 2, "folder": f"{main_run}/own/grids"}},
        {"class_path": "SampleWriter", "init_args": {"folder": f"{main_run}/own/samples", "formats": ["npz"]}},
        {"class_path": "RunReport"},
    ]
    trainer = TINY["trainer"] | {  # type: ignore[operator]
        "default_root_dir": main_run,
        "limit_val_batches": 2,
        "val_check_interval": 4,
        "callbacks": callbacks,
        "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": board},
    }
    arguments = TINY["model"]["init_args"] | {  # type: ignore[index]
        "evaluations": {"self": guided(main_run), "sibling": guided(str(root / "runs/small"))},
        "prediction": {"num_samples": 3},
        "metrics": {"fd": {"class_path": "FrechetDistance", "init_args": PIXELS}},
        "average": 0.05,
    }
    return TINY | {"trainer": trainer, "model": TINY["model"] | {"init_args": arguments}}  # type: ignore[operator]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/main, trained, and its sibling runs/small."""
    root = tmp_path_factory.mktemp("original")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    main(["fit", "-c", str(root / "tiny.yaml"), "--trainer.default_root_dir", str(root / "runs/small")])
    chosen = settings(root)
    chosen["model"]["init_args"]["evaluations"].pop("self")  # not stored yet at the first validation
    (root / "main.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    main(["fit", "-c", str(root / "main.yaml")])
    written = yaml.safe_load((root / "runs/main/config.yaml").read_text())
    written["model"]["init_args"]["evaluations"] = settings(root)["model"]["init_args"]["evaluations"]
    (root / "runs/main/config.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return root


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def evaluate(run: Path, command: str = "validate", *words: str) -> dict[str, dict[str, float]]:
    """Run a command on the config in `run`; return the metrics in the folder named there."""
    main([command, "-c", str(run / "config.yaml"), *words])
    found: dict[str, dict[str, float]] = json.loads((run / "own/report/metrics.json").read_text())
    return found


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["exists", "is gone"])
def test_a_copied_run_is_evaluated_and_written_where_it_is(original: Path, tmp_path: Path, kept: bool) -> None:
    root = original if kept else Path(shutil.copytree(original, tmp_path / "first"))
    if not kept:
        for path in (root / "runs").glob("*/config.yaml"):
            path.write_text(path.read_text().replace(str(original), str(root)))
    copies = Path(shutil.copytree(root / "runs", tmp_path / "elsewhere"))
    copy = (copies / "main").rename(copies / "renamed")
    if not kept:
        shutil.rmtree(root)
    before = content(original)
    metrics = evaluate(copy)
    assert set(metrics) == {"self", "sibling"} and content(original) == before
    assert evaluate(copy, "test")["self"]["nfe"] == metrics["self"]["nfe"]
    main(["predict", "-c", str(copy / "config.yaml")])
    assert (copy / "own/samples/samples.npz").is_file() and any((copy / "own/grids").iterdir())
    written = yaml.safe_load((copy / "config.validate.yaml").read_text())
    sibling = written["model"]["init_args"]["evaluations"]["sibling"]["guidance"]["init_args"]["guider"]["init_args"]
    assert sibling["run"] == str(copies / "small") and written["trainer"]["default_root_dir"] == str(copy)
    main(["fit", "-c", str(copy / "config.yaml"), "--trainer.max_steps", "6"])
    assert lg.Run(copy).snapshots.entries()[-1].images == 48
    assert content(original) == before and (kept or not root.exists())


def test_the_copy_is_read_and_not_the_original(original: Path, tmp_path: Path) -> None:
    copies = Path(shutil.copytree(original / "runs", tmp_path / "runs"))
    for path in copies.glob("*/snapshots/*"):
        path.unlink()
    with pytest.raises(SystemExit, match=rf"{copies / 'main'}.* no averaged snapshots"):
        main(["test", "-c", str(copies / "main/config.yaml")])


def test_a_linked_run_is_the_run(original: Path, tmp_path: Path) -> None:
    copies = Path(shutil.copytree(original / "runs", tmp_path / "disk"))
    link = tmp_path / "link"
    link.symlink_to(copies / "main")
    assert set(evaluate(link)) == {"self", "sibling"}
    assert (copies / "main/own/report/metrics.json").is_file()


@pytest.mark.slow
def test_a_copied_run_works_with_all_other_commands(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(original)
    copies = Path(shutil.copytree(original / "runs", tmp_path / "runs"))
    run = str(copies / "main")
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SMALL))
    cfg = {"model": {"init_args": {"guidances": {"half": {"class_path": "ScoreScaling"}}}}}
    (tmp_path / "guidance.yaml").write_text(yaml.safe_dump(cfg))
    for command in ("sweep", "tune"):
        budget = ("--budget", "120") if command == "tune" else ()
        for place in (run, f"{run}/config.yaml"):
            main([command, place, str(tmp_path / "search.yaml"), "--out", str(tmp_path / command), *budget])
    main(["gallery", run, f"[{tmp_path / 'guidance.yaml'}]", "--count", "2"])
    main(["export", run, str(tmp_path / "exported")])
    main(["reconstruct", run, "[0.08]", "--max_error", "0.9"])
    main(["report", run])
    assert (copies / "main/gallery/guidance/gallery.png").is_file() and (copies / "main/report.html").is_file()
    assert torch.equal(*(next(lg.load(place).parameters()) for place in (run, original / "runs/main")))
    assert set(lg.Run(run).evaluate()) == {"self", "sibling"}
    assert content(original) == before
    assert str(original) not in capsys.readouterr().out


def test_a_search_of_a_run_that_was_moved_continues(original: Path, tmp_path: Path, drawn: list[Any]) -> None:
    copies = Path(shutil.copytree(original / "runs", tmp_path / "runs"))
    guider = {"run": str(copies / "small"), "images": "1/1", "sigma_rel": 0.1}
    words = [str(tmp_path / "search.yaml"), "--out", str(tmp_path / "out")]
    for place in (copies, tmp_path / "moved"):
        evaluation = SEARCH["evaluation"] | {
            "guidance": {
                "class_path": "Autoguidance",
                "init_args": {
                    "guider": {"class_path": "Snapshot", "init_args": guider | {"run": str(place / "small")}}
                },
            }
        }
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(SMALL | {"evaluation": evaluation}))
        if place != copies:
            copies.rename(place)
            drawn.clear()
        main(["sweep", str(place / "main"), *words])
    assert drawn == []


@pytest.mark.slow
def test_results_of_a_read_only_run_go_where_the_user_says(original: Path, tmp_path: Path) -> None:
    copies = Path(shutil.copytree(original / "runs", tmp_path / "runs"))
    run, before = copies / "main", content(copies)
    plain = ["-c", str(run / "config.yaml"), "--trainer.callbacks=[MetricsReport]", "--trainer.logger=true"]
    out = tmp_path / "out"

    def act() -> None:
        make_read_only(copies)
        for command in ("fit", "validate", "test", "predict"):
            with said([command, str(run), "--trainer.default_root_dir"]):
                main([command, *plain])
        with said(["predict", str(run / "own")]):  # folders of callbacks in the run
            main(["predict", "-c", str(run / "config.yaml"), "--trainer.default_root_dir", str(out)])
        for command in ("validate", "predict"):
            main([command, *plain, "--trainer.default_root_dir", str(out)])
        assert json.loads((out / "report/metrics.json").read_text()).keys() == {"self", "sibling"}
        assert any((out / "samples").rglob("*.npz")) and any((out / "tensorboard").rglob("events*"))
        assert lg.load(run).data_shape == (2,)

    forked(act)
    assert content(copies) == before


@pytest.mark.slow
def test_other_commands_read_a_read_only_run(original: Path, tmp_path: Path) -> None:
    copies = Path(shutil.copytree(original / "runs", tmp_path / "runs"))
    run, before = str(copies / "main"), content(copies)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SMALL))
    cfg = {"model": {"init_args": {"guidances": {"half": {"class_path": "ScoreScaling"}}}}}
    (tmp_path / "guidance.yaml").write_text(yaml.safe_dump(cfg))
    methods = f"[{tmp_path / 'guidance.yaml'}]"

    def act() -> None:
        make_read_only(copies)
        main(["gallery", run, methods, "--count", "2", "--out", str(tmp_path / "gallery")])
        assert (tmp_path / "gallery/gallery.png").is_file()
        main(["sweep", run, str(tmp_path / "search.yaml"), "--out", str(tmp_path / "sweep")])
        main(["export", run, str(tmp_path / "exported")])
        main(["report", run, "--out", str(tmp_path / "page.html")])
        main(["reconstruct", run, "[0.08]", "--max_error", "0.9", "--out", str(tmp_path / "rebuilt")])
        for words in (
            ["gallery", run, methods],
            ["reconstruct", run, "[0.08]", "--max_error", "0.9"],
            ["report", run],
            ["export", run, str(copies / "exported")],
            ["sweep", run, str(tmp_path / "search.yaml"), "--out", str(copies / "sweep")],
        ):
            with said([str(copies)]):
                main(words)
        assert set(lg.Run(run).evaluate()) == {"self", "sibling"}

    forked(act)
    assert content(copies) == before
