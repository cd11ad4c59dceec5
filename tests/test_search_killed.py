"""SIGKILL in a sweep and in a tuner, and two processes: the same results, nothing drawn twice that was finished."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from tests.processes import Processes, kill
from tests.searches import SEARCH

pytestmark = pytest.mark.slow

CALL = ("tests.test_search_killed", "search")


def search(kind: str, folder: str, out: str, devices: int | None = None) -> None:
    """A search on the run in `folder`."""
    words = [kind, f"{folder}/run/config.yaml", f"{folder}/search.yaml", "--out", out]
    words += ["--budget", "320"] if kind == "tune" else []
    main([*words, "--devices", str(devices)] if devices else words)


@pytest.fixture(scope="module")
def folder(search_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and a search of 8 points."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(search_folder / "run", folder / "run")
    weights = {"path": "guidance.init_args.weight", "values": [1.5, 2, 2.5, 3]}
    widths = {"path": "guidance.init_args.guider.init_args.sigma_rel", "values": [0.06, 0.08]}
    axes = {"weight": weights, "sigma_rel": widths}
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH | {"axes": axes}, sort_keys=False))
    return folder


def timeless(path: Path) -> Any:
    """The results without seconds."""

    def without(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: without(value) for key, value in node.items() if key not in ("seconds", "half_widths")}
        return [without(value) for value in node] if isinstance(node, list) else node

    return without({key: value for key, value in json.loads(path.read_text()).items() if key != "search"})


@pytest.mark.parametrize(("kind", "file"), [("sweep", "results.json"), ("tune", "tune.json")])
def test_killed_at_random_instants_it_ends_with_the_same_results(
    kind: str, file: str, folder: Path, tmp_path: Path, processes: Processes
) -> None:
    draw, killed = random.Random(kind), 0
    while True:
        pid = processes.start(CALL, tmp_path / "log", kind=kind, folder=str(folder), out=str(tmp_path / "out"))
        if killed < 4:
            done, deadline = _progress(tmp_path / "out"), time.monotonic() + 120
            while _progress(tmp_path / "out") <= done and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.4))
            kill(pid)
        status = processes.wait(pid, seconds=300)
        if status == 0:
            break
        assert status == -9, (tmp_path / "log").read_text()[-2000:]
        killed += 1
    assert killed >= 2
    processes.call(CALL, tmp_path / "log", kind=kind, folder=str(folder), out=str(tmp_path / "whole"))
    interrupted, whole = (json.dumps(timeless(tmp_path / name / file)) for name in ("out", "whole"))
    # the folders of rebuilt averages are named in nothing that is compared
    assert interrupted == whole


def _progress(out: Path) -> int:
    """Points scored and blocks written."""
    try:
        points = json.loads((out / "results.json").read_text()).get("points", {})
    except (OSError, ValueError):
        points = {}
    return len(points) + len(list((out / "blocks").glob("*.safetensors")))


def test_two_processes_find_what_one_finds(folder: Path, tmp_path: Path, processes: Processes) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    processes.call(CALL, tmp_path / "log", kind="sweep", folder=str(folder), out=str(one))
    processes.call_ranks(2, CALL, tmp_path / "log", kind="sweep", folder=str(folder), out=str(two), devices=2)
    expected, found = (timeless(each / "results.json")["points"] for each in (one, two))
    assert expected.keys() == found.keys() and len(found) == 9
    for name, point in expected.items():
        for key, value in point["values"].items():
            assert found[name]["values"][key] == pytest.approx(value, rel=1e-4), (name, key)
    processes.call(CALL, tmp_path / "log", kind="tune", folder=str(folder), out=str(one))
    winners = timeless(one / "tune.json")["winners"]
    for _ in range(2):
        processes.call_ranks(2, CALL, tmp_path / "log", kind="tune", folder=str(folder), out=str(two), devices=2)
        assert timeless(two / "tune.json")["winners"] == winners
        # as if killed before the last blocks: processes that have not come together yet score what is there
        (two / "tune.json").unlink()
        blocks = sorted((two / "blocks").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in blocks[-4:]:
            path.unlink()
