"""Files that are no checkpoint of the run: each is named for what it is, and nothing in it is executed."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from safetensors.torch import save_file
from torch import nn

from callbacks import PostHocEMA, RunCheckpoint
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.checkpoints import check_checkpoint, newest_checkpoint, read_checkpoint
from lightning_guide.snapshots import SnapshotStore
from tests.runs import TinyImages, TinyNetwork, assert_same, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(folder, PostHocEMA(8), RunCheckpoint(2), steps=4)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    return folder


@pytest.fixture
def whole(run: Path) -> dict[str, Any]:
    return dict(torch.load(newest_checkpoint(run) or "", weights_only=True))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(os.environ["BOMB"])),)


def boring(path: Path, whole: dict[str, Any]) -> None:
    trainer = tiny_trainer(path.parent / "boring", steps=1)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(path)


def zipped(path: Path, whole: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "mine")


def flipped(path: Path, whole: dict[str, Any]) -> None:
    torch.save(whole, path)
    content = bytearray(path.read_bytes())
    content[content.index(whole["state_dict"]["denoiser.network.first.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def script(path: Path, whole: dict[str, Any]) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def of(write: Callable[[Path], object]) -> Callable[[Path, dict[str, Any]], object]:
    return lambda path, whole: write(path)


def content(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, dict[str, Any]], object]:
    return lambda path, whole: torch.save(change(whole), path)


OTHER = tiny_module(TinyNetwork((1, 6, 6)))
FILES: dict[str, tuple[Callable[[Path, dict[str, Any]], object], str]] = {
    "empty": (of(lambda path: path.write_bytes(b"")), "is an empty file"),
    "folder": (of(Path.mkdir), "is a folder"),
    "page": (
        of(lambda path: path.write_text("\n<!DOCTYPE html><p>404")),
        "is a web page, perhaps in place of a download",
    ),
    "lfs": (of(lambda path: path.write_text("version https://git-lfs.github.com/spec/v1")), "is a pointer of Git LFS"),
    "text": (of(lambda path: path.write_text("step: 4\n")), "is a text file"),
    "bytes": (of(lambda path: path.write_bytes(bytes(range(256)))), "is no checkpoint"),
    "zip": (zipped, "is a zip archive without weights"),
    "gzip": (of(lambda path: path.write_bytes(gzip.compress(b"step"))), "is a gzip archive"),
    "pickle": (of(lambda path: path.write_bytes(pickle.dumps({"state_dict": Bomb()}))), "is a pickle"),
    "safetensors": (of(lambda path: save_file({"w": torch.ones(2)}, path)), "is a safetensors file of weights"),
    "bomb": (
        content(lambda whole: {"state_dict": {}, "more": Bomb()}),
        "is a file of another program: .* would run code",
    ),
    "script": (script, "is a file of another program"),
    "state dict": (content(lambda whole: whole["state_dict"]), "is a bare state dict of 8 tensors such as 'denoiser"),
    "dict": (content(lambda whole: {"model": whole["state_dict"], "epoch": 1}), "is a dict with model, epoch, not a"),
    "tensor": (content(lambda whole: torch.ones(2)), "is a Tensor, not a checkpoint"),
    "cut": (of(lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500))), "is damaged"),
    "flipped": (flipped, "is damaged .the checksum of .* is wrong"),
    "module": (boring, "is that of another module: it holds 2 weights such as 'layer.weight', DiffusionModule has 8"),
    "shapes": (
        content(lambda whole: whole | {"state_dict": OTHER.state_dict()}),
        "holds another model than the config",
    ),
    "weights": (
        content(lambda whole: {key: whole[key] for key in ("state_dict", "pytorch-lightning_version", "loops")}),
        "holds weights alone and no optimizer_states, lr_schedulers, callbacks, so training cannot continue",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")  # a file of TorchScript
def test_each_file_is_named_for_what_it_is(
    name: str, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path, (write, expected) = tmp_path / "some.ckpt", FILES[name]
    write(path, whole)
    with pytest.raises(ValueError, match=expected) as refused:
        check_checkpoint(path, tiny_module(average=None), training=True)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert ("damaged" in str(refused.value)) == (name in ("cut", "flipped"))
    assert not (tmp_path / "exploded").exists()


def test_a_snapshot_says_which_and_how_it_is_used(run: Path) -> None:
    path = SnapshotStore(run / "snapshots").entries()[0].path
    with pytest.raises(ValueError, match=r"is a snapshot, the average sigma_rel=0.05 after 8 images.*runs.pretrained"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Total length of")  # no training data
def test_weights_alone_can_be_evaluated(whole: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({key: whole[key] for key in ("state_dict", "pytorch-lightning_version", "global_step")}, path)
    module: DiffusionModule = tiny_module(average=None)
    check_checkpoint(path, module, training=False)
    trainer = tiny_trainer(tmp_path)
    trainer.test(module, datamodule=TinyImages(), ckpt_path=path, weights_only=True)
    assert_same(dict(module.state_dict()), dict(whole["state_dict"]))


def test_a_missing_file_names_those_beside_it(run: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; checkpoints in its folder: step-000000002.ckpt, step-0000"):
        read_checkpoint(run / "checkpoints" / "step-000000003.ckpt")


def test_own_checkpoint_is_accepted(run: Path) -> None:
    """Nothing is raised; what is refused, and how, the tests below say."""
    check_checkpoint(newest_checkpoint(run) or "", tiny_module(average=None), training=True)
