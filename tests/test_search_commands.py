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
from lightning_guide.search.drawing import BlockEvaluations, DrawnBlocks
from lightning_guide.search.guiders import Rebuilt
from lightning_guide.search.ledger import Ledger, run_identity
from lightning_guide.search.search_file import read_search
from lightning_guide.snapshots import SnapshotStore
from tests.test_cli import TINY

PIXELS = {"extractor": {"class_path": "RawPixels"}}
METRICS = {
    "fd": {"class_path": "FrechetDistance", "init_args": PIXELS},
    "pr": {"class_path": "PrecisionRecall", "init_args": PIXELS | {"max_reference": 50}},
}
SEARCH = {
    "images": "1/1",
    "average": 0.05,
    "evaluation": {
        "batch_size": 7,
        "sampler": {
            "class_path": "lightning_guide.samplers.Euler",
            "init_args": {"grid": {"class_path": "lightning_guide.noise.KarrasGrid", "init_args": {"num_steps": 4}}},
        },
        "guidance": {
            "class_path": "Autoguidance",
            "init_args": {"guider": {"class_path": "Snapshot", "init_args": {"images": "1/2", "sigma_rel": 0.1}}},
        },
    },
    "axes": {
        "weight": {"path": "guidance.init_args.weight", "values": [3, float("nan")], "prior": 3},
        "sigma_rel": {"path": "guidance.init_args.guider.init_args.sigma_rel", "values": [0.08, 0.28]},
    },
    "metrics": METRICS,
    "block": 6,
    "blocks": 5,
    "objectives": {"fd": "lowest", "recall": "highest"},
}


def finished_run(folder: Path) -> None:
    """Trains `folder`/run: averages of two widths at 20 times."""
    dense = {"class_path": "PostHocEMA", "init_args": {"every_images": 8}}
    settings = TINY | {"trainer": TINY["trainer"] | {"max_steps": 20, "callbacks": [dense]}}  # type: ignore[operator]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    main(["fit", "-c", str(folder / "tiny.yaml"), "--trainer.default_root_dir", str(folder / "run")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run: averages of two widths at 20 times."""
    folder = tmp_path_factory.mktemp("search")
    finished_run(folder)
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH, sort_keys=False))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(point, blocks missing) of every call that draws something."""
    calls: list[tuple[str, int]] = []
    before = DrawnBlocks.draw

    def draw(self: DrawnBlocks, place: Any, blocks: Any) -> None:
        if missing := len(set(blocks) - self.drawn(place)):
            calls.append((self.space.name(place), missing))
        before(self, place, blocks)

    monkeypatch.setattr(DrawnBlocks, "draw", draw)
    return calls


def search(folder: Path, kind: str, out: str, *words: str, changes: dict[str, Any] | None = None) -> Path:
    """Runs a search with some of SEARCH changed; returns its folder."""
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(SEARCH | (changes or {}), sort_keys=False))
    main([kind, str(folder / "run/config.yaml"), str(path), "--out", str(folder / out), *words])
    return folder / out


def test_a_sweep_scores_every_point_as_test_does_and_goes_on_where_it_stood(
    folder: Path, drawn: list[tuple[str, int]]
) -> None:
    untouched = sorted(path.name for path in (folder / "run").iterdir())
    out = search(folder, "sweep", "sweep")
    assert sorted(path.name for path in (folder / "run").iterdir()) == untouched
    content = json.loads((out / "results.json").read_text())
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
    assert len(list((out / "tensorboard").rglob("events.out.*"))) >= 1

    # begun again, it draws nothing but what failed; and what was interrupted is drawn
    assert len(drawn) == 5
    before = (out / "results.csv").read_text()
    del content["points"]["weight=3 sigma_rel=0.08"]
    (out / "results.json").write_text(json.dumps(content))
    drawn.clear()
    search(folder, "sweep", "sweep")
    assert {name for name, _ in drawn} == set(failed) | {"weight=3 sigma_rel=0.08"}
    assert _without_seconds(out / "results.csv") == _without_seconds_of(before)


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
    search(folder, "tune", "tune", "--budget", "320", changes=changes)
    assert {name for name, _ in drawn} <= {"weight=nan"}
    again = json.loads((out / "tune.json").read_text())
    assert again["winners"] == content["winners"] and again["rounds"] == content["rounds"]


def test_results_know_whose_they_are(folder: Path, tmp_path: Path) -> None:
    search = {"run": run_identity(folder / "run"), "axes": {"w": {"values": [1.5, float("nan")]}}, "block": 10}
    ledger = Ledger(tmp_path / "results.json", search)
    ledger.content["points"] = {"a": {"values": {"fd": float("inf")}}}
    ledger.write()
    assert Ledger(tmp_path / "results.json", search).content == {"points": {"a": {"values": {"fd": None}}}}
    with pytest.raises(ValueError, match="results.json belongs to another search: block was 10, now it is 11; choose"):
        Ledger(tmp_path / "results.json", search | {"block": 11})
    store = SnapshotStore(folder / "run/snapshots")
    newest = store.entries()[-1]
    before, (tensors, metadata) = newest.path.read_bytes(), store.load(newest)
    changed = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(changed, images=160, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    with pytest.raises(ValueError, match="belongs to another search: run was "):
        Ledger(tmp_path / "results.json", search | {"run": run_identity(folder / "run")})
    newest.path.write_bytes(before)
    ledger.content = {}
    ledger.write()  # a search that ended in a mistake: the file may be put right
    Ledger(tmp_path / "results.json", search | {"block": 11})
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json holds no search"):
        Ledger(tmp_path / "results.json", search)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"w": {"path": "guidance.init_args.weight"}}}, "expected path, values and maybe prior"),
        ({"axes": {"w": {"path": "guidance.init_args.weight", "values": 3}}}, "expected a list"),
        ({"axis": {}}, r"a search does not know \['axis'\]; expected evaluation, axes"),
        ({"objectives": {"fd": "low"}}, "objective 'fd' is 'low'; expected lowest or highest"),
        ({"blocks": 0}, "blocks is 0; expected a whole number from 1 on"),
        ({"axes": [1]}, r"axes is \[1\]; expected names with what they stand for"),
        ({"objectives": "fd"}, "objectives is 'fd'; expected names"),
        ({"evaluation": "unguided"}, "evaluation is 'unguided'; expected names"),
        ({"evaluation": {"num_samples": 9, "metrics": {}}}, "its evaluation sets metrics, num_samples, which a search"),
        ({"metrics": ["fd"]}, r"metrics is \['fd'\]; expected names"),
        ({1: 2, "axis": 4}, r"a search does not know \[1, 'axis'\]"),
        ({"objectives": {"fd": ["lowest"]}}, r"objective 'fd' is \['lowest'\]; expected lowest or highest"),
        ({"axes": {"w": {"path": "a", "values": {"x": 1}, "prior": {"x": 1}}}}, "its prior {'x': 1} is none of its"),
    ],
)
def test_what_a_file_gets_wrong_is_said(tmp_path: Path, changes: dict[Any, Any], said: str) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH | changes))
    with pytest.raises(ValueError, match=rf"search.yaml: .*{said}"):
        read_search(tmp_path / "search.yaml")
    (tmp_path / "search.yaml").write_text("axes: {w: [\n")
    with pytest.raises(ValueError, match="search.yaml is no YAML: while parsing"):
        read_search(tmp_path / "search.yaml")
    (tmp_path / "search.yaml").write_text("# to be filled in")
    with pytest.raises(ValueError, match="search.yaml holds nothing; expected evaluation, axes"):
        read_search(tmp_path / "search.yaml")


def test_the_folder_of_the_run_is_no_folder_for_results(
    folder: Path, drawn: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    other, file = folder / "run_too", folder / "file"
    (other / "checkpoints").mkdir(parents=True)
    file.write_text("")
    for out, said in (
        (folder / "run", "is the folder of the run itself"),
        (other, "run_too is the folder of a run; expected one for the results"),  # whose curves would be removed
        (file, "file cannot be a folder for the results: File exists"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["sweep", str(folder / "run/config.yaml"), str(folder / "search.yaml"), "--out", str(out)])
        assert said in str(left.value.code) and not drawn


def test_an_objective_that_is_not_reported_is_said_after_the_first_point(
    folder: Path, drawn: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        search(folder, "sweep", "unknown", changes={"objectives": {"fid": "lowest"}})
    assert "the metric 'fid' is not reported" in str(left.value.code) and drawn == [("unguided", 5)]


def test_blocks_of_another_search_in_the_folder_are_left_alone(
    folder: Path, drawn: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawnBlocks, "forget", lambda *_: None)  # as if killed before
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
    with pytest.raises(SystemExit, match="stopped by SIGTERM; begun again, the search goes on"):
        search(folder, "sweep", f"stopped_{blocks}", changes={"blocks": blocks})


def test_a_missing_compiler_is_said_in_a_search_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise RuntimeError("No working C++ compiler found in (None, 'g++')\n\nSet TORCHDYNAMO_VERBOSE")

    monkeypatch.setattr(BlockEvaluations, "step", step)
    with pytest.raises(SystemExit, match=r"the last one: compile: true needs a compiler \(No working C\+\+ compiler"):
        search(folder, "sweep", "compiler", changes={"axes": {"batch": {"path": "batch_size", "values": [3]}}})
    point = json.loads((folder / "compiler/results.json").read_text())["points"]["unguided"]
    assert point["failed"].startswith("compile: true needs") and "\n" not in point["failed"]


def test_what_is_odd_in_a_search_does_no_harm(folder: Path) -> None:
    """A column's name for an axis, a guider that cannot be, own metrics of an evaluation, a file among the blocks."""
    metrics = {"cost": METRICS["fd"]}
    (folder / "odd/blocks").mkdir(parents=True)
    (folder / "odd/blocks/weights.safetensors").write_text("")
    guider = {"path": "guidance.init_args.guider.init_args", "values": [{"age": 3}, {"run": 3}, {"images": [1]}, {}]}
    axes = {"nfe": {"path": "guidance.init_args.weight", "values": [3]}, "guider": guider}
    changes = {"axes": axes, "blocks": 2, "metrics": None, "objectives": {"fd": "lowest"}}
    out = search(folder, "sweep", "odd", "--configs", _own_metrics(folder, metrics), changes=changes)
    with (out / "results.csv").open() as file:
        table = {row["point"]: row for row in csv.DictReader(file)}
    assert (table["nfe=3 guider={}"]["axis nfe"], table["nfe=3 guider={}"]["nfe"]) == ("3", "8.0")
    assert len([row for row in table.values() if row["failed"]]) == 3 and float(table["unguided"]["fd"]) > 0
    metrics["cost"] = METRICS["pr"]
    with pytest.raises(SystemExit, match="belongs to another search: metrics was "):
        search(folder, "sweep", "odd", "--configs", _own_metrics(folder, metrics), changes=changes)


def _own_metrics(folder: Path, metrics: dict[str, Any]) -> str:
    path = folder / "own_metrics.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"evaluations": {"unguided": {"metrics": metrics}}}}}))
    return f"[{path}]"


def test_a_snapshot_on_an_axis_may_leave_out_what_is_the_default(folder: Path, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"guidance": {"class_path": "Snapshot"}}
    told = {"guidance": {"class_path": "Snapshot", "init_args": {"images": 40, "sigma_rel": 0.08}}}
    rebuilt = Rebuilt(folder / "run", tmp_path, [bare, told])
    assert rebuilt.instead(bare) == bare  # a stored one
    assert rebuilt.instead(told)["guidance"]["init_args"]["run"].startswith(str(tmp_path))


def test_averages_rebuilt_from_a_run_are_not_those_of_a_run_trained_anew_in_its_folder(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    told = {"guidance": {"class_path": "Snapshot", "init_args": {"images": 40, "sigma_rel": 0.08}}}

    def rebuilt() -> Any:
        return Rebuilt(tmp_path / "run", tmp_path, [told]).instead(told)["guidance"]["init_args"]["run"]

    before = rebuilt()
    assert rebuilt() == before
    store = SnapshotStore(tmp_path / "run/snapshots")
    tensors, metadata = store.load(newest := store.entries()[-1])
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(doubled, images=newest.images, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    assert rebuilt() != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"w": {"path": "guidance.init_args.wight", "values": [1]}}}, "init_args holds guider, weight"),
        ({"objectives": {}}, "has no objectives"),
        ({"metrics": {}}, "has metrics to judge by"),
        ({"objectives": {"fid": "lowest"}}, "the metric 'fid' is not reported; there are: nfe, samples"),
        ({"evaluation": {"sampler": {"class_path": "Eulr"}}}, "the evaluation of the search"),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        search(folder, "tune", "mistake", "--budget", "320", changes=changes)
    found = str(left.value.code)
    assert said in found and "\n" not in found.strip()


def test_every_search_in_configs_can_be_read() -> None:
    for path in sorted((Path(__file__).parent.parent / "configs/search").glob("*.yaml")):
        assert read_search(path).axes, path
        assert path.read_text().startswith("# "), path


def _without_seconds(path: Path) -> list[str]:
    return _without_seconds_of(path.read_text())


def _without_seconds_of(table: str) -> list[str]:
    """The lines in the order of the points, without times."""
    rows = list(csv.DictReader(table.splitlines()))
    return sorted(str({key: value for key, value in row.items() if key != "seconds"}) for row in rows)


def test_another_run_that_changes_in_its_folder_and_other_data_are_noticed(
    folder: Path, drawn: list[tuple[str, int]]
) -> None:
    other = folder / "other"
    shutil.copytree(folder / "run", other)
    weight = {"path": "guidance.init_args.weight", "values": [2], "prior": 2}
    run = {"path": "guidance.init_args.guider.init_args.run", "values": [str(other), str(folder / "run")]}
    changes = {"axes": {"weight": weight, "run": run}, "objectives": {"fd": "lowest"}}
    words = ("tune", "runs", "--budget", "240")
    search(folder, *words, changes=changes)
    assert {name for name, _ in drawn} == {"unguided", f"weight=2 run={other}", f"weight=2 run={folder / 'run'}"}
    drawn.clear()
    with pytest.raises(SystemExit, match="belongs to another search: data was "):
        search(folder, *words, "--configs", f"[{_other_data(folder)}]", changes=changes)
    store = SnapshotStore(other / "snapshots")
    newest = store.entries()[-1]
    tensors, metadata = store.load(newest)
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(doubled, images=newest.images, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    with pytest.raises(SystemExit, match="belongs to another search: runs was "):
        search(folder, *words, changes=changes)
    (folder / "runs/tune.json").unlink()
    search(folder, *words, changes=changes)
    assert {name for name, _ in drawn} == {f"weight=2 run={other}"}  # the blocks of the others still hold
    (folder / "runs/tune.json").unlink()
    drawn.clear()
    mixed = f"[{_other_data(folder)}, {_own_metrics(folder, METRICS)[1:]}"
    search(folder, *words, "--configs", mixed, changes=changes)
    assert len({name for name, _ in drawn}) == 3  # of other data none does
    drawn.clear()
    search(folder, "tune", "own", "--budget", "240", "--configs", mixed, changes=changes | {"metrics": None})
    used = yaml.safe_load((folder / "own/fd.yaml").read_text())["model"]["init_args"]["metrics"]
    assert list(used) == list(METRICS)


def _other_data(folder: Path) -> Path:
    path = folder / "other_data.yaml"
    path.write_text("data: {init_args: {seed: 7}}")
    return path
