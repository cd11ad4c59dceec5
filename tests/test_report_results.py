"""Table of results on the page of a run: baseline, best values, intervals, order and links."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml

from lightning_guide.report.commit import code_commit
from lightning_guide.report.page import Page
from lightning_guide.report.results import Cell, find_baseline, in_order, is_lower_better, result_cells
from lightning_guide.report.run_page import write_page
from lightning_guide.report.tables import environment
from lightning_guide.snapshots import SnapshotStore
from tests.test_report import Parsed, checked

RESULTS = {
    "cfg": {"nfe": 4.0, "fd": 2.0, "fd_low": 1.5, "fd_high": 2.5, "recall": 0.5, "mine": 1.0},
    "plain": {"nfe": 2.0, "fd": 3.0, "fd_low": None, "fd_high": 3.5, "recall": 0.75, "mine": 2.0},
    "broken": {"nfe": 2.0, "fd": None, "recall": 0.75},
}


def test_best_values_intervals_and_baseline_are_marked() -> None:
    head, *rows = result_cells(RESULTS, "plain")
    assert [cell.text for cell in head] == ["evaluation", "nfe", "fd", "recall", "mine"]
    assert [cell.text for cell in rows[0]] == ["cfg", "4", "2 [1.5, 2.5]", "0.5", "1"]
    assert [cell.text for cell in rows[1]] == ["plain", "2", "3", "0.75", "2"]  # an end of the interval is unknown
    assert [cell.text for cell in rows[2]] == ["broken", "2", "nan", "0.75", "-"]
    marks = [(row[0].text, head[i].text) for row in rows for i, cell in enumerate(row) if cell.mark == "best"]
    assert marks == [("cfg", "fd"), ("plain", "recall"), ("broken", "recall")]  # nothing is known about nfe and mine
    assert [row[0].mark for row in rows] == ["", "baseline", ""]
    assert result_cells({}, None) == [] == result_cells({"a": {}}, None)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("fd", True), ("fd_dinov2", True), ("dino_fd", True), ("kid", True), ("pr_recall", False), ("samples", None)],
)
def test_direction_of_metrics(metric: str, lower: bool | None) -> None:
    assert is_lower_better(metric) is lower


def test_baseline_is_the_first_evaluation_without_guidance() -> None:
    main, cfg = {"class_path": "lightning_guide.guidance.Main"}, {"class_path": "ClassifierFreeGuidance"}
    names = dict.fromkeys(["cfg", "plain", "main"])
    assert find_baseline(names, {"cfg": {"guidance": cfg}, "plain": {"guidance": None}, "main": {}}) == "plain"
    assert (
        find_baseline(names, {"cfg": {"guidance": cfg}, "plain": {"guidance": cfg}, "main": {"guidance": main}})
        == "main"
    )
    assert find_baseline(["a", "unguided"], {}) == "unguided" and find_baseline(["a"], {}) is None
    assert in_order(["c", "b", "x", "a"], ["a", "b", "c"]) == ["a", "b", "c", "x"]


def test_page_is_in_the_order_of_the_config_and_links_snapshots(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    store = SnapshotStore(run / "snapshots")
    for images in (8, 16):
        recipe = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
        store.save({"w": torch.ones(2)}, images=images, sigma_rel=0.05, recipe=recipe, planned_images=16)
    (run / "report").mkdir()
    (run / "report/metrics.json").write_text(json.dumps(RESULTS))
    evaluations = {"plain": {"num_samples": 3}, "cfg": {"guidance": {"class_path": "ClassifierFreeGuidance"}}}
    (run / "config.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"evaluations": evaluations}}}, sort_keys=False)
    )
    for out in (run / "report.html", tmp_path / "elsewhere/page.html"):
        out.parent.mkdir(exist_ok=True)
        parsed = checked(write_page(run, out).read_text())
        names = [text for text in parsed.text["td"] if text.strip() in RESULTS]
        assert names == ["plain ", "cfg", "broken"] and parsed.text["small"] == ["(baseline)"]
        assert parsed.text["strong"] == ["0.75", "2 [1.5, 2.5]", "0.75"]
        links = [unquote(attributes["href"] or "") for tag, attributes in parsed.elements if tag == "a"]
        assert [(out.parent / link).resolve() for link in links] == [entry.path.resolve() for entry in store.entries()]


def test_addresses_in_links_are_relative_and_escaped() -> None:
    page = Page("links")
    page.table([["a"], [Cell("x", link='javascript:alert("1")')]])
    ((_, attributes),) = [each for each in Parsed(page.html).elements if each[0] == "a"]
    assert attributes["href"] == "./javascript%3Aalert%28%221%22%29"


def test_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert code_commit(tmp_path) is None and code_commit(tmp_path / "nowhere") is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("a = 1\n")
    subprocess.run([*git, "add", "code"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert code_commit(tmp_path / "code") == commit
    (tmp_path / "code/a.py").write_text("a = 2\n")
    assert code_commit(tmp_path / "code") == f"{commit} + changes"
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/b.py").write_text("b = 1\n")
    assert code_commit(tmp_path / "site-packages") is None  # installed below somebody's repository


def test_environment_names_the_commit() -> None:
    own = code_commit(Path(__file__).parent.parent / "lightning_guide")
    assert environment().get("commit") == own
