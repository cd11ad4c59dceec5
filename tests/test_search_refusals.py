"""What a search refuses, in one sentence: mistakes in its file, folders that are not its own, others' results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.search.config import read_search
from lightning_guide.search.results_file import ResultsFile, run_identity
from lightning_guide.snapshots import SnapshotStore
from tests.searches import METRICS, SEARCH, other_data, own_metrics, search


@pytest.fixture
def folder(search_folder: Path) -> Path:
    """A folder with a finished run: averages of two widths at 20 times."""
    return search_folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"w": {"path": "guidance.init_args.weight"}}}, "expected path, values and maybe prior"),
        ({"axes": {"w": {"path": "guidance.init_args.weight", "values": 3}}}, "expected a list"),
        ({"axis": {}}, r"\['axis'\] is not a key of a search .did you mean axes..; expected evaluation, axes"),
        ({"objectives": {"fd": "low"}}, "objective 'fd' is 'low'; expected lowest or highest"),
        ({"blocks": 0}, "blocks is 0; expected a whole number from 1 on"),
        ({"axes": [1]}, r"axes is \[1\]; expected a mapping from names to values"),
        ({"objectives": "fd"}, "objectives is 'fd'; expected a mapping from names"),
        ({"evaluation": "unguided"}, "evaluation is 'unguided'; expected a mapping from names"),
        (
            {"evaluation": {"num_samples": 9, "metrics": {}}},
            "its evaluation sets metrics, num_samples, which the search",
        ),
        ({"metrics": ["fd"]}, r"metrics is \['fd'\]; expected a mapping from names"),
        ({1: 2, "axis": 4}, r"\['1', 'axis'\] is not a key of a search .did you mean axes.."),
        ({"objectives": {"fd": ["lowest"]}}, r"objective 'fd' is \['lowest'\]; expected lowest or highest"),
        ({"axes": {"w": {"path": "a", "values": {"x": 1}, "prior": {"x": 1}}}}, "its prior {'x': 1} is not one of its"),
    ],
)
def test_what_a_file_gets_wrong_is_said(tmp_path: Path, changes: dict[Any, Any], said: str) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH | changes))
    with pytest.raises(ValueError, match=rf"search.yaml: .*{said}"):
        read_search(tmp_path / "search.yaml")
    (tmp_path / "search.yaml").write_text("axes: {w: [\n")
    with pytest.raises(ValueError, match="search.yaml is not valid YAML: line 2, column 1: while parsing"):
        read_search(tmp_path / "search.yaml")
    (tmp_path / "search.yaml").write_text("# to be filled in")
    with pytest.raises(ValueError, match="search.yaml holds nothing; expected evaluation, axes"):
        read_search(tmp_path / "search.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("block: 2\nseed: 3\nblock: 4\n", "line 3: duplicate key 'block' .first defined on line 1."),
        ("axes:\n  age: {path: a, values: [1]}\n  age: {path: b, values: [1]}\n", "line 3: duplicate key 'age' .first"),
    ],
)
def test_a_key_that_stands_twice_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "search.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"search.yaml, {said}"):
        read_search(tmp_path / "search.yaml")
    merged = "evaluation: {a: &a {x: 1}, b: {c: &c {<<: *a, x: 2}}, d: {<<: *c, x: 3}}"
    (tmp_path / "search.yaml").write_text(merged)  # laid over each other, no key is given twice
    assert read_search(tmp_path / "search.yaml").evaluation == {"a": {"x": 1}, "b": {"c": {"x": 2}}, "d": {"x": 3}}


def test_every_search_in_configs_can_be_read() -> None:
    for path in sorted((Path(__file__).parent.parent / "configs/search").glob("*.yaml")):
        assert read_search(path).axes, path
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"w": {"path": "guidance.init_args.wight", "values": [1]}}}, "init_args holds guider, weight"),
        ({"objectives": {}}, "has no objectives"),
        ({"metrics": {}}, "has metrics to judge by"),
        ({"objectives": {"fid": "lowest"}}, "the metric 'fid' is not reported; there are: nfe, samples"),
        (
            {"evaluation": {"sampler": {"class_path": "Eulr"}}},
            "line 5: evaluation.sampler.class_path: there is no class",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        search(folder, "tune", "mistake", "--budget", "320", changes=changes)
    found = str(left.value.code)
    assert said in found and "\n" not in found.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "-5"), "a budget of -5 images is too small: 2 objectives and blocks of 6 need at least 240"),
        (("--budget", "239"), " need at least 240"),
        (("--budget", "320", "--calls", "0"), "--calls is 0; expected at least 1 network call per sample"),
    ],
)
def test_what_a_tuner_may_spend_is_checked_before_a_run_is_opened(
    folder: Path, words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_guide.commands.search.open_session", None)
    with pytest.raises(SystemExit) as left:
        main(["tune", str(folder / "run"), str(folder / "search.yaml"), "--out", str(tmp_path / "none"), *words])
    assert said in str(left.value.code) and not (tmp_path / "none").exists()


def test_an_objective_that_is_not_reported_is_said_after_the_first_point(
    folder: Path, drawn: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        search(folder, "sweep", "unknown", changes={"objectives": {"fid": "lowest"}})
    assert "the metric 'fid' is not reported" in str(left.value.code) and drawn == [("unguided", 5)]


def test_the_folder_of_the_run_is_no_folder_for_results(
    folder: Path, drawn: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    other, file = folder / "run_too", folder / "file"
    (other / "checkpoints").mkdir(parents=True)
    file.write_text("")
    for out, said in (
        (folder / "run", "is the folder of the run itself"),
        (other, "run_too is a folder of a run or of snapshots; expected"),  # whose curves would be removed
        (folder / "run/snapshots", "snapshots is a folder of a run or of snapshots; expected one for the results"),
        (file, "file cannot be a folder for the results: File exists"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["sweep", str(folder / "run/config.yaml"), str(folder / "search.yaml"), "--out", str(out)])
        assert said in str(left.value.code) and not drawn


def test_results_know_whose_they_are(folder: Path, tmp_path: Path) -> None:
    search = {"run": run_identity(folder / "run"), "axes": {"w": {"values": [1.5, float("nan")]}}, "block": 10}
    ledger = ResultsFile(tmp_path / "results.json", search)
    ledger.content["points"] = {"a": {"axes": {"w": 1.5}, "values": {"fd": float("inf")}}}
    ledger.write()
    written = {"points": {"a": {"axes": {"w": 1.5}, "values": {"fd": None}}}}
    assert ResultsFile(tmp_path / "results.json", search).content == written
    ledger = ResultsFile(tmp_path / "results.json", search)
    for name, value in (("b", 2.0), ("c", float("nan")), ("b", 3.0)):  # the last one again, as after a failure
        ledger.content["points"][name] = {"axes": {"w": value}}
        ledger.write_point(name)
    points = ResultsFile(tmp_path / "results.json", search).content["points"]
    assert points == written["points"] | {"b": {"axes": {"w": 3.0}}, "c": {"axes": {"w": None}}}
    with pytest.raises(ValueError, match="results.json was made with other settings: block was 10 and is now 11; "):
        ResultsFile(tmp_path / "results.json", search | {"block": 11})
    store = SnapshotStore(folder / "run/snapshots")
    newest = store.entries()[-1]
    before, (tensors, metadata) = newest.path.read_bytes(), store.load(newest)
    for _ in range(10):  # the order of the header's entries differs from one writing to the next
        again = {name: each for name, each in vars(metadata).items() if name != "code_version"}
        store.save(tensors, **again)
        assert run_identity(folder / "run") == search["run"]
    changed = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(changed, images=160, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    with pytest.raises(ValueError, match="made with other settings: run.weights was "):
        ResultsFile(tmp_path / "results.json", search | {"run": run_identity(folder / "run")})
    newest.path.write_bytes(before)
    failed = {"unguided": {"axes": {}, "values": {"fd": 1.0}}, "a": {"axes": {"w": 1.5}, "failed": "no guider"}}
    for content in ({}, {"points": {}}, {"points": failed}):  # a search that ended in a mistake: it may be put right
        ledger.content = content
        ledger.write()
        assert ResultsFile(tmp_path / "results.json", search).content == content
        assert ResultsFile(tmp_path / "results.json", search | {"block": 11}).content == {}
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json does not record 'search'"):
        ResultsFile(tmp_path / "results.json", search)


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
    with pytest.raises(SystemExit, match="made with other settings: data."):
        search(folder, *words, "--configs", f"[{other_data(folder)}]", changes=changes)
    store = SnapshotStore(other / "snapshots")
    newest = store.entries()[-1]
    tensors, metadata = store.load(newest)
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    store.save(doubled, images=newest.images, sigma_rel=newest.sigma_rel, recipe=metadata.recipe)
    with pytest.raises(SystemExit, match="made with other settings: runs."):
        search(folder, *words, changes=changes)
    (folder / "runs/tune.json").unlink()
    search(folder, *words, changes=changes)
    assert {name for name, _ in drawn} == {f"weight=2 run={other}"}  # the blocks of the others still hold
    (folder / "runs/tune.json").unlink()
    drawn.clear()
    mixed = f"[{other_data(folder)}, {own_metrics(folder, METRICS)[1:]}"
    search(folder, *words, "--configs", mixed, changes=changes)
    assert len({name for name, _ in drawn}) == 3  # of other data none does
    drawn.clear()
    search(folder, "tune", "own", "--budget", "240", "--configs", mixed, changes=changes | {"metrics": None})
    used = yaml.safe_load((folder / "own/fd.yaml").read_text())["model"]["init_args"]["metrics"]
    assert list(used) == list(METRICS)


def test_a_wrong_budget_is_the_only_mistake(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paths of the run and of the search are text, also if their files hold something."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    words = [
        "tune",
        str(folder / "run" / "config.yaml"),
        str(tmp_path / "search.yaml"),
        "--budget",
        "many",
        "--out",
        "out",
    ]
    monkeypatch.setattr("sys.argv", ["lightning-guide", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = f"{left.value.code} {capsys.readouterr().err}"
    assert "--budget is 'many'; expected a whole number" in said and "mistakes" not in said
