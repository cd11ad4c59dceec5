"""Sweeps and the tuner as commands on a tiny run: the numbers of `test`, nothing drawn twice, failures."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.commands import search as commands
from lightning_guide.search.blocks import BlockEvaluations, SampledBlocks
from lightning_guide.search.halving import Halving
from lightning_guide.search.rebuilt_guiders import RebuiltGuiders
from lightning_guide.snapshots import SnapshotStore
from tests.event_files import opened
from tests.searches import METRICS, PIXELS, SEARCH, own_metrics, search


@pytest.fixture
def folder(search_folder: Path) -> Path:
    """A folder with a finished run: averages of two widths at 20 times."""
    return search_folder


def test_a_sweep_scores_every_point_as_test_does_and_goes_on_where_it_stood(
    folder: Path, drawn: list[tuple[str, int]]
) -> None:
    untouched = sorted(path.name for path in (folder / "run").iterdir())
    out = search(folder, "sweep", "sweep")
    assert sorted(path.name for path in (folder / "run").iterdir()) == untouched
    content = json.loads((out / "results.json").read_text())
    assert content["search"]["extractors"] == {"fd": ["RawPixels, no weights"], "pr": ["RawPixels, no weights"]}
    points = content["points"]
    assert list(points)[:2] == ["unguided", "weight=3 sigma_rel=0.08"] and len(points) == 5
    failed = {name: point["failed"] for name, point in points.items() if "failed" in point}
    assert set(failed) == {n for n in points if "nan" in n or "0.28" in n}
    assert failed["weight=nan sigma_rel=0.08"] == "Autoguidance needs finite weights, got [nan]"
    assert "sigma_rel=0.28 cannot be rebuilt well enough" in failed["weight=3 sigma_rel=0.28"]

    # the width in between was rebuilt once, beside the results
    (rebuilt,) = (out / "rebuilt").iterdir()
    assert [(e.images, e.sigma_rel) for e in SnapshotStore(rebuilt / "snapshots").entries()] == [(80, 0.08)]
    # what the blocks add up to is what one evaluation of all 30 samples says
    guider = {"class_path": "Snapshot", "init_args": {"images": "1/2", "sigma_rel": 0.08}}
    guidance = {"class_path": "Autoguidance", "init_args": {"weight": 3, "guider": guider}}
    template: dict[str, Any] = SEARCH["evaluation"]  # type: ignore[assignment]
    whole = {"batch_size": 7, "sampler": template["sampler"], "num_samples": 30}
    evaluations = {"unguided": whole, "guided": whole | {"guidance": guidance}}
    report = {"class_path": "MetricsReport", "init_args": {"folder": str(folder / "whole")}}
    settings = {
        "trainer": {"callbacks": [report], "logger": False},
        "model": {"init_args": {"evaluations": evaluations, "metrics": METRICS}},
    }
    (folder / "whole.yaml").write_text(yaml.safe_dump(settings))
    main(["test", "-c", str(folder / "run/config.yaml"), "-c", str(folder / "whole.yaml")])
    expected = json.loads((folder / "whole/metrics.json").read_text())
    for name, point in (("unguided", "unguided"), ("guided", "weight=3 sigma_rel=0.08")):
        found = points[point]["values"]
        assert found["samples"] == 30 and len(points[point]["without"]) == 5
        for key in ("fd", "precision", "recall", "nfe"):
            assert found[key] == pytest.approx(expected[name][key], rel=1e-4), (name, key)

    with (out / "results.csv").open() as file:
        table = {row["point"]: row for row in csv.DictReader(file)}
    row = table["weight=3 sigma_rel=0.08"]
    assert float(row["fd_change"]) == pytest.approx(expected["guided"]["fd"] - expected["unguided"]["fd"], rel=1e-3)
    assert float(row["weight"]) == 3 and float(row["fd_change_half_width"]) > 0
    assert table["weight=nan sigma_rel=0.08"]["failed"].startswith("Autoguidance needs")
    assert (out / "sensitivity.png").stat().st_size > 5000
    assert opened(out / "tensorboard/sweep").Tags()["images"] == ["sweep/sensitivity"]
    assert any((out / "tensorboard/sweep").glob("point-*/events.out.*"))

    # run again, it draws only what failed or was interrupted
    assert len(drawn) == 5
    before = (out / "results.csv").read_text()
    logged = len(list((out / "tensorboard").rglob("events.out.*")))
    (out / "tensorboard" / "events.out.tfevents.mine").write_bytes(b"of the user")
    del content["points"]["weight=3 sigma_rel=0.08"]
    (out / "results.json").write_text(json.dumps(content))
    drawn.clear()
    search(folder, "sweep", "sweep")
    assert {name for name, _ in drawn} == set(failed) | {"weight=3 sigma_rel=0.08"}
    assert _without_seconds(out / "results.csv") == _without_seconds_of(before)
    assert (out / "tensorboard" / "events.out.tfevents.mine").exists(), "only what the sweep wrote is replaced"
    assert len(list((out / "tensorboard").rglob("events.out.*"))) == logged + 1


@pytest.mark.slow
def test_a_tuner_hands_over_guidances_that_can_be_used(
    folder: Path, drawn: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"axes": {"weight": SEARCH["axes"]["weight"]}}  # type: ignore[index]
    out = search(folder, "tune", "tune", "--budget", "320", changes=changes)
    content = json.loads((out / "tune.json").read_text())
    assert sum(blocks for name, blocks in drawn if "nan" not in name) * 6 == content["samples"] <= 320
    assert set(content["winners"]) == {"fd", "recall"} and list(content["failed"]) in ([], ["weight=nan"])
    assert content["fresh_samples"] >= 24 and len(content["fresh"]) >= 2
    assert content["pareto"] and content["statements"][0].startswith("fd: ")
    assert "fresh samples" in capsys.readouterr().out
    written = (out / "fd.yaml").read_text()
    assert written.startswith("# fd: ")
    report = folder / "report.yaml"
    callback = {"class_path": "MetricsReport", "init_args": {"folder": str(folder / "used")}}
    report.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "logger": False}}))
    main(["test", "-c", str(folder / "run/config.yaml"), "-c", str(report), "-c", str(out / "fd.yaml")])
    assert list(json.loads((folder / "used/metrics.json").read_text())) == ["unguided", "tuned_fd"]

    drawn.clear()
    (out / "tune.json").write_text(json.dumps({"search": content["search"]}))  # as if killed just before its end
    search(folder, "tune", "tune", "--budget", "320", changes=changes)
    assert {name for name, _ in drawn} <= {"weight=nan"}
    again = json.loads((out / "tune.json").read_text())
    assert again["winners"] == content["winners"] and again["rounds"] == content["rounds"]

    (out / "tune.json").write_text(json.dumps({"search": content["search"]}))
    next((out / "blocks").glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.raises(SystemExit, match="is damaged .*remove it and the search redraws it"):
        search(folder, "tune", "tune", "--budget", "320", changes=changes)


def test_a_finished_tuner_says_again_what_it_found(
    folder: Path, drawn: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"axes": {"weight": {"path": "guidance.init_args.weight", "values": [3]}}, "objectives": {"fd": "lowest"}}
    out = search(folder, "tune", "done", "--budget", "144", changes=changes)
    content, said = (out / "tune.json").read_text(), capsys.readouterr().out.splitlines()[-2:]
    assert json.loads(content)["statements"] == said[:1]
    guidance = (out / "fd.yaml").read_text()
    (out / "fd.yaml").unlink()
    drawn.clear()
    search(folder, "tune", "done", "--budget", "144", changes=changes)
    assert (out / "fd.yaml").read_text() == guidance and not drawn  # of the blocks that lie there
    assert capsys.readouterr().out.splitlines()[-2:] == said and (out / "tune.json").read_text() == content

    monkeypatch.setattr(Halving, "run", lambda _: pytest.fail("searched again"))
    search(folder, "tune", "done", "--budget", "144", changes=changes)
    assert capsys.readouterr().out.splitlines()[-2:] == said and not drawn
    assert (out / "tune.json").read_text() == content

    failed = json.loads(content) | {"failed": {"weight=3": "no memory"}}
    (out / "tune.json").write_text(json.dumps(failed))
    with pytest.raises(pytest.fail.Exception, match="searched again"):  # what failed is tried once more
        search(folder, "tune", "done", "--budget", "144", changes=changes)


def test_blocks_of_another_search_in_the_folder_are_left_alone(
    folder: Path, drawn: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampledBlocks, "discard", lambda *_: None)  # as if killed before
    axes = {"weight": {"path": "guidance.init_args.weight", "values": [3]}}
    near = {"pr": METRICS["pr"] | {"init_args": PIXELS | {"k": 1}}}
    (folder / "near.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"metrics": near}}}))
    for block in (6, 8):
        changes = {"axes": axes, "block": block, "blocks": 2}
        search(folder, "sweep", "moved", "--configs", f"[{folder / 'near.yaml'}]", changes=changes)
        used = json.loads((folder / "moved/results.json").read_text())["search"]["metrics"]
        assert used["pr"]["init_args"]["k"] == 3  # metrics of a search are not laid over those of the run
        (folder / "moved/results.json").unlink()
    assert [blocks for _, blocks in drawn] == [2, 2, 2, 2]


@pytest.mark.parametrize("blocks", [1, 2])  # while the last samples of a point are drawn, and before
def test_a_search_stopped_by_a_scheduler_does_not_look_finished(
    folder: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BlockEvaluations.step

    def stopped(*words: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(*words)

    monkeypatch.setattr(BlockEvaluations, "step", stopped)
    with pytest.raises(SystemExit, match="sweep was stopped by SIGTERM; rerun the same command to resume"):
        search(folder, "sweep", f"stopped_{blocks}", changes={"blocks": blocks})


def test_a_missing_compiler_is_said_in_a_search_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise RuntimeError("No working C++ compiler found in (None, 'g++')\n\nSet TORCHDYNAMO_VERBOSE")

    monkeypatch.setattr(BlockEvaluations, "step", step)
    with pytest.raises(SystemExit, match=r"the last one: compile: true needs a compiler \(No working C\+\+ compiler"):
        search(folder, "sweep", "compiler", changes={"axes": {"batch": {"path": "batch_size", "values": [3]}}})
    point = json.loads((folder / "compiler/results.json").read_text())["points"]["unguided"]
    assert point["failed"].startswith("compile: true needs") and "\n" not in point["failed"]


def test_whatever_fails_in_a_point_is_noted_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the point is made, drawn or scored; by batch sizes 3, 4, 5."""
    make, step, score = commands._evaluation, BlockEvaluations.step, SampledBlocks._scores

    def making(written: dict[str, Any]) -> Any:
        if written["batch_size"] == 3:
            raise TypeError("__init__() got an unexpected keyword argument 'depth'")
        return make(written)

    def stepping(self: BlockEvaluations, *words: Any) -> Any:
        if next(iter(self.evaluations.values())).batch_size == 4:
            raise FileNotFoundError(2, "No such file or directory", "negatives.npz")
        return step(self, *words)

    def scoring(self: SampledBlocks, *words: Any) -> Any:
        if next(iter(self.evaluations.evaluations.values())).batch_size == 5:
            raise KeyError("cls")
        return score(self, *words)

    monkeypatch.setattr(commands, "_evaluation", making)
    monkeypatch.setattr(BlockEvaluations, "step", stepping)
    monkeypatch.setattr(SampledBlocks, "_scores", scoring)
    axes = {"batch": {"path": "batch_size", "values": [3, 4, 5, 6]}}
    out = search(folder, "sweep", "failures", changes={"axes": axes, "blocks": 2})
    with (out / "results.csv").open() as file:
        table = {row["batch"]: row for row in csv.DictReader(file)}
    assert table["3"]["failed"] == "TypeError: __init__() got an unexpected keyword argument 'depth'"
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'negatives.npz'" in table["4"]["failed"]
    assert table["5"]["failed"] == "KeyError: 'cls'"
    assert not table["6"]["failed"] and float(table["6"]["fd"]) > 0


def test_a_search_of_which_nothing_came_may_be_put_right(folder: Path) -> None:
    axes = {"sigma_rel": SEARCH["axes"]["sigma_rel"] | {"values": [0.28]}}  # type: ignore[index]
    changes = {"axes": axes, "blocks": 2}
    with pytest.raises(SystemExit, match="every point of the sweep failed, the last one: .*0.28 cannot be rebuilt"):
        search(folder, "sweep", "mended", changes=changes)
    axes["sigma_rel"]["values"] = [0.08]
    out = search(folder, "sweep", "mended", changes=changes)
    assert list(json.loads((out / "results.json").read_text())["points"]) == ["unguided", "sigma_rel=0.08"]


def test_what_is_odd_in_a_search_does_no_harm(folder: Path) -> None:
    """A column's name for an axis, a guider that cannot be, own metrics of an evaluation, a file among the blocks."""
    metrics = {"cost": METRICS["fd"]}
    (folder / "odd/blocks").mkdir(parents=True)
    (folder / "odd/blocks/weights.safetensors").write_text("")
    guider = {"path": "guidance.init_args.guider.init_args", "values": [{"age": 3}, {"run": 3}, {"images": [1]}, {}]}
    axes = {"nfe": {"path": "guidance.init_args.weight", "values": [3]}, "guider": guider}
    changes = {"axes": axes, "blocks": 2, "metrics": None, "objectives": {"fd": "lowest"}}
    out = search(folder, "sweep", "odd", "--configs", own_metrics(folder, metrics), changes=changes)
    with (out / "results.csv").open() as file:
        table = {row["point"]: row for row in csv.DictReader(file)}
    assert (table["nfe=3 guider={}"]["axis nfe"], table["nfe=3 guider={}"]["nfe"]) == ("3", "8.0")
    assert len([row for row in table.values() if row["failed"]]) == 3 and float(table["unguided"]["fd"]) > 0
    metrics["cost"] = METRICS["pr"]
    with pytest.raises(SystemExit, match="made with other settings: metrics."):
        search(folder, "sweep", "odd", "--configs", own_metrics(folder, metrics), changes=changes)


def test_a_snapshot_on_an_axis_may_leave_out_what_is_the_default(folder: Path, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"guidance": {"class_path": "Snapshot"}}
    referring = {"guidance": {"class_path": "Snapshot", "init_args": {"images": 40, "sigma_rel": 0.08}}}
    rebuilt = RebuiltGuiders(folder / "run", tmp_path, [bare, referring])
    assert rebuilt.instead(bare) == bare  # a stored one
    assert rebuilt.instead(referring)["guidance"]["init_args"]["run"].startswith(str(tmp_path))


def test_averages_rebuilt_from_a_run_are_not_those_of_a_run_trained_anew_in_its_folder(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    node = {"guidance": {"class_path": "Snapshot", "init_args": {"images": 40, "sigma_rel": 0.08}}}

    def rebuilt() -> Any:
        return RebuiltGuiders(tmp_path / "run", tmp_path, [node]).instead(node)["guidance"]["init_args"]["run"]

    before = rebuilt()
    assert rebuilt() == before
    store = SnapshotStore(tmp_path / "run/snapshots")
    tensors, metadata = store.load(newest := store.entries()[-1])
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(doubled, images=newest.images, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    assert rebuilt() != before


def _without_seconds(path: Path) -> list[str]:
    return _without_seconds_of(path.read_text())


def _without_seconds_of(table: str) -> list[str]:
    """The lines in the order of the points, without times."""
    rows = list(csv.DictReader(table.splitlines()))
    return sorted(str({key: value for key, value in row.items() if key != "seconds"}) for row in rows)
