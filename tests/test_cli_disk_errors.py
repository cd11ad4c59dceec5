"""A full disk, a file in place of a folder, a name too long: one sentence, and what existed stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.runs.checkpoints import newest_checkpoint, read_checkpoint
from lightning_guide.snapshots import SnapshotStore
from tests.disks import call_alone, mount, said
from tests.processes import Processes
from tests.test_cli import TINY


def fit_on_a_small_disk(folder: str) -> None:
    """Fit in `folder`/disk, of 200 kB, until it is full."""
    run = Path(folder, "disk/run")
    mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", str(run.parent))
    with said([str(run), "o space"]):
        main(["fit", "-c", f"{folder}/tiny.yaml"])
    newest = newest_checkpoint(run)
    assert newest is not None and read_checkpoint(newest)["global_step"] >= 5
    store = SnapshotStore(run / "snapshots")
    assert [store.load(entry) for entry in store.entries()]
    assert not list(run.rglob("*.tmp")) and not (run / ".lock").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 200


def test_a_full_disk_ends_a_fit_and_leaves_what_was_written(tmp_path: Path, processes: Processes) -> None:
    callbacks = [
        {"class_path": "PostHocEMA", "init_args": {"every_images": 80}},
        {"class_path": "RunCheckpoint", "init_args": {"every_steps": 5}},
        {"class_path": "RunReport"},
    ]
    run = tmp_path / "disk/run"
    trainer = {"max_steps": 200, "callbacks": callbacks, "default_root_dir": str(run), "log_every_n_steps": 50}
    arguments = TINY["model"]["init_args"] | {"evaluations": {}}  # type: ignore[index]
    settings = TINY | {"trainer": TINY["trainer"] | trainer, "model": TINY["model"] | {"init_args": arguments}}  # type: ignore[operator]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "disk").mkdir()
    function = ("tests.test_cli_disk_errors", "fit_on_a_small_disk")
    call_alone(processes, function, tmp_path / "log", folder=str(tmp_path))


@pytest.mark.parametrize("place", ["FILE", "FILE/below", "LONG"])
@pytest.mark.parametrize(
    "words",
    [
        ("export", "RUN", "PLACE"),
        ("reconstruct", "RUN", "[0.08]", "--max_error", "0.9", "--out", "PLACE"),
        ("neon", "RUN", "RUN", "--out", "PLACE"),
        ("report", "RUN", "--out", "PLACE/page.html"),
        ("sweep", "RUN", "SEARCH", "--out", "PLACE"),
        ("fit", "-c", "RUN/config.yaml", "--trainer.default_root_dir", "PLACE"),
        ("predict", "-c", "RUN/config.yaml", "--trainer.default_root_dir", "PLACE"),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_is_no_folder_is_named(
    words: tuple[str, ...], place: str, search_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    where = {"FILE": "file", "FILE/below": "file/below", "LONG": "a" * 300}[place]
    named = {
        "PLACE": str(tmp_path / where),
        "RUN": str(search_folder / "run"),
        "SEARCH": str(search_folder / "search.yaml"),
    }
    command = list(words)
    for name, value in named.items():
        command = [word.replace(name, value) for word in command]
    with said([str(tmp_path / where.split("/")[0])]):
        main(command)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"
