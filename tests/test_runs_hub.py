"""Models exported for other tools and to the Hub, and back; the Hub itself is stood in for by a folder."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from lightning_guide.runs.hub import export, pull, push, read_export
from lightning_guide.runs.models import finished_model
from lightning_guide.snapshots import SnapshotStore
from tests.small_networks import LABELS, SIGMA, noisy_images, unet


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one snapshot."""
    model = unet()
    buffers = [name for name, _ in model.named_buffers()]
    store = SnapshotStore(tmp_path / "run" / "snapshots")
    store.save(model.state_dict(), images=64, sigma_rel=0.05, recipe=model.recipe, planned_images=128, buffers=buffers)
    return tmp_path / "run"


def test_an_export_is_a_plain_state_dict_and_a_json_file(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == unet().state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in unet().state_dict().items())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["images"], written["sigma_rel"], written["planned_images"]) == (64, 0.05, 128)
    assert written["recipe"] == unet().recipe
    with pytest.raises(ValueError, match="already holds a model"):
        export(str(run), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="available: images 64"):
        export(str(run), str(tmp_path / "other"), images=7)
    assert not (tmp_path / "other").exists()


def test_a_disk_that_takes_no_more_bytes_leaves_no_half_model(run: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*model.safetensors.*(large|space)"):
            export(str(run), str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    export(str(run), str(tmp_path / "out"))  # the folder is free
    read_export(tmp_path / "out")


def test_what_was_exported_comes_back_as_a_run(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"))
    pull(str(tmp_path / "out"), str(tmp_path / "back"))
    before, after = finished_model(run, None, 0.05), finished_model(tmp_path / "back", None, 0.05)
    with torch.no_grad():
        assert torch.equal(before(noisy_images(), SIGMA, LABELS), after(noisy_images(), SIGMA, LABELS))
    (entry,) = SnapshotStore(tmp_path / "back" / "snapshots").entries()
    assert (entry.images, entry.sigma_rel) == (64, 0.05)
    assert SnapshotStore(tmp_path / "back" / "snapshots").planned_images == 128
    with pytest.raises(ValueError, match="already holds a run"):
        pull(str(tmp_path / "out"), str(tmp_path / "back"))


def test_push_and_pull_by_way_of_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"

    def upload(self: Any, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, hub / repo_id)

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert set(allow_patterns) == {path.name for path in (hub / repo_id).iterdir()}
        return str(hub / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, *, private, exist_ok: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    push(str(run), "somebody/model")
    assert capsys.readouterr().out == "sigma_rel 0.05 after 64 images: somebody/model on the hub\n"
    pull("somebody/model", str(tmp_path / "back"))
    assert finished_model(tmp_path / "back", None, 0.05).recipe == unet().recipe


def test_what_the_hub_refuses_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the hub did not take .* as 'somebody/model': "):  # no network in tests
        push(str(run), "somebody/model")
    with pytest.raises(ValueError, match="'nobody/nothing' is neither a local folder nor a model of the hub"):
        pull("nobody/nothing", str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_damaged_exports_are_named(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="config.json does not exist"):
        read_export(out)
    export(str(run), str(out))
    written = json.loads((out / "config.json").read_text())
    for change, sentence in (
        ({"format": "else"}, "its format is 'else'"),
        ({"images": None}, "does not describe a model"),
        ({"format": ...}, "does not describe a model: it has no 'format'"),
        ({"recipe": {"class_path": "os.system", "init_args": {"command": "true"}}}, "expected a class of a network"),
        ({"recipe": unet(model_channels=16).recipe}, "model.safetensors does not fit .*config.json"),
    ):
        kept = {key: value for key, value in (written | change).items() if value is not ...}
        (out / "config.json").write_text(json.dumps(kept))
        with pytest.raises(ValueError, match=sentence):
            read_export(out)
    (out / "config.json").write_text(json.dumps(written))
    data = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="model.safetensors does not fit"):
        read_export(out)
