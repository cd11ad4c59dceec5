"""Sample writer: files hold the drawn samples for any batches, processes, formats and interruptions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor, nn

from callbacks.base import EvaluationSamples
from callbacks.sample_formats import NpzArchive
from callbacks.sample_grid import SampleGrid
from callbacks.sample_writer import SampleWriter
from datamodules.base import DiffusionData
from datamodules.examples import Examples, TensorExamples
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Euler
from lightning_guide.training.losses import EDMLoss
from tests.processes import Processes

SAMPLER = Euler(KarrasGrid(3, sigma_max=5.0))


class Shade(Denoiser):
    """Denoiser of white noise around a level given by the label."""

    sigma_data = 0.5

    def __init__(self, shape: tuple[int, ...], num_classes: int = 0) -> None:
        super().__init__()
        self.data_shape, self.num_classes = shape, num_classes
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        level = self.level if condition is None else condition.reshape(-1, *[1] * (x.ndim - 1)) / 4
        return level + (x - level) * 0.25 / (0.25 + sigma**2)


class Stored(DiffusionData):
    """Data whose samples are stored as uint8, or unchanged."""

    def __init__(self, shape: tuple[int, ...], num_classes: int = 0, *, as_bytes: bool = True) -> None:
        super().__init__(batch_size=2)
        self.data_shape, self.num_classes, self.as_bytes = shape, num_classes, as_bytes

    def training(self) -> Examples:
        return TensorExamples(torch.randn(4, *self.data_shape))

    heldout = training

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8) if self.as_bytes else x


class Interrupt(pl.Callback):
    """Raises an error after batch 1."""

    def on_predict_batch_end(self, *arguments: Any, **named: Any) -> None:
        if arguments[4] == 1:
            raise RuntimeError("interrupted")


class Drawn(EvaluationSamples):
    """Writes the indices of the samples to a file."""

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        indices = {name: drawn.index.tolist() for name, drawn in samples.items()}
        (Path(trainer.default_root_dir) / "drawn.json").write_text(json.dumps(indices))


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **options,
    )


def module(
    shape: tuple[int, ...], num_classes: int = 0, *, count: int, batch: int = 3, first: int = 0
) -> DiffusionModule:
    drawing = Evaluation(sampler=SAMPLER, num_samples=count, batch_size=batch, first_index=first)
    evaluations = {
        "many": Evaluation(sampler=SAMPLER, num_samples=7, batch_size=2),
        "one": Evaluation(sampler=SAMPLER, num_samples=1),
    }
    return DiffusionModule(
        Shade(shape, num_classes), EDMLoss(), prediction=drawing, evaluations=evaluations, average=None
    )


def files(folder: Path) -> list[str]:
    """Return all files but the record of the prediction."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "samples.json")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def records(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return key -> extension -> bytes of all shards; fail if a key is in two shards."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            inside: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, extension = member.name.split(".")
                file = tar.extractfile(member)
                assert file is not None
                inside.setdefault(key, {})[extension] = file.read()
        assert not inside.keys() & found.keys()
        found |= inside
    return found


def predict(
    folder: Path, formats: list[Any], shape: tuple[int, ...] = (3, 4, 4), classes: int = 0, **options: Any
) -> Any:
    as_bytes, records_per_shard = options.pop("as_bytes", True), options.pop("records_per_shard", 1000)
    writer = SampleWriter(str(folder / "samples"), formats=formats, records_per_shard=records_per_shard)
    data = Stored(shape, classes, as_bytes=as_bytes)
    return trainer(folder, writer).predict(module(shape, classes, **options), data)


def test_png_files_are_named_by_index_in_folders_of_a_thousand(tmp_path: Path) -> None:
    assert predict(tmp_path, ["png", "npz"], count=5, first=998) is None  # nothing is kept in memory
    names = ["000000/000998.png", "000000/000999.png", "001000/001000.png", "001000/001001.png", "001000/001002.png"]
    assert files(tmp_path / "samples") == [*names, "samples.npz"]
    expected = np.load(tmp_path / "samples" / "samples.npz")["x"]
    for name, image in zip(names, expected, strict=True):
        assert (np.array(Image.open(tmp_path / "samples" / name)) == image.transpose(1, 2, 0)).all()


def test_gray_images_stay_gray(tmp_path: Path) -> None:
    predict(tmp_path, ["png"], (1, 4, 4), count=1)
    assert Image.open(tmp_path / "samples" / "000000" / "000000.png").mode == "L"


def test_npz_is_sorted_and_independent_of_the_batch_size(tmp_path: Path) -> None:
    archives = []
    for batch in (1, 3, 100):
        predict(tmp_path / str(batch), ["npz"], classes=4, count=7, batch=batch)
        archives.append(np.load(tmp_path / str(batch) / "samples" / "samples.npz"))
        assert files(tmp_path / str(batch)) == ["samples/samples.npz"]
    first = archives[0]
    assert sorted(first.files) == ["condition", "index", "x"]
    assert first["x"].dtype == np.uint8 and first["x"].shape == (7, 3, 4, 4)
    assert first["index"].tolist() == list(range(7)) and first["condition"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    means = first["x"].reshape(7, -1).mean(axis=1)
    assert means[3] > means[0] + 40  # labels match images
    for other in archives[1:]:
        assert all((other[name] == first[name]).all() for name in first.files)


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    predict(tmp_path, ["shards", "npz"], classes=4, count=7, records_per_shard=3)
    folder = tmp_path / "samples"
    shards = [f"samples-00000-{number:06d}.tar" for number in range(3)]
    assert files(folder) == [*shards, "samples.npz"]
    expected = np.load(folder / "samples.npz")
    urls = [str(folder / shard) for shard in shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls")
    read = list(dataset)
    assert [key for key, _, _ in read] == [f"{index:06d}" for index in range(7)]
    assert [label for _, _, label in read] == expected["condition"].tolist()
    assert all((image.transpose(2, 0, 1) == x).all() for (_, image, _), x in zip(read, expected["x"], strict=True))


def test_points_go_to_npz_and_shards_as_float32_without_labels(tmp_path: Path) -> None:
    predict(tmp_path, ["npz", "shards"], (2,), count=5, as_bytes=False)
    archive = np.load(tmp_path / "samples" / "samples.npz")
    assert archive["x"].dtype == np.float32 and archive["x"].shape == (5, 2)
    assert archive["condition"].tolist() == [-1] * 5
    found = records(tmp_path / "samples")
    assert sorted(found) == [f"{index:06d}" for index in range(5)]
    for key, record in found.items():
        assert list(record) == ["npy"]
        assert (np.load(io.BytesIO(record["npy"])) == archive["x"][int(key)]).all()


@pytest.mark.parametrize("shape", [(2,), (2, 4, 4)])
def test_png_of_other_data_is_rejected(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\) and|shape \(3, 2\); expected formats 'npz' or 'shards'"):
        predict(tmp_path, ["png"], shape, count=3, as_bytes=len(shape) == 3)
    assert files(tmp_path) == []


def test_interrupted_prediction_is_overwritten_by_the_next(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    formats: list[Any] = ["png", "npz", "shards"]
    predict(whole, formats, count=9, records_per_shard=4)
    writer = SampleWriter(str(broken / "samples"), formats=formats, records_per_shard=4)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(broken, writer, Interrupt()).predict(module((3, 4, 4), count=9), Stored((3, 4, 4)))
    left = files(broken / "samples")
    assert "samples-00000-000000.tar" in left and "samples-00000-000001.tar" not in left  # complete shards only
    assert not [name for name in left if name.endswith(".tmp")] and "samples.npz" not in left
    predict(broken, formats, count=9, records_per_shard=4)
    assert files(broken) == files(whole)
    for name in files(whole):
        if not name.endswith(".npz"):
            assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_shorter_prediction_removes_shards_of_a_longer_one(tmp_path: Path) -> None:
    predict(tmp_path, ["shards"], count=9, records_per_shard=2)
    mine = tmp_path / "samples" / "samples-00003-000000.tar"
    mine.write_bytes(b"of the user")
    predict(tmp_path, ["shards"], count=3, records_per_shard=2)
    mine.unlink()
    assert files(tmp_path) == ["samples/samples-00000-000000.tar", "samples/samples-00000-000001.tar"]
    assert sorted(records(tmp_path / "samples")) == ["000000", "000001", "000002"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["jpg"]}, r"formats out of png, npz, shards, got \['jpg'\]"),
        ({"formats": []}, "formats out of"),
        ({"records_per_shard": 0}, "records_per_shard >= 1"),
    ],
)
def test_unknown_formats_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleWriter(**arguments)


def test_processes_without_samples_or_without_a_shared_folder(tmp_path: Path) -> None:
    drawn = DrawnSamples(torch.tensor([4, 1]), torch.tensor([0, -1]), torch.tensor([[4.0], [1.0]]))
    archives = [NpzArchive(tmp_path, rank, 2) for rank in (0, 1)]
    archives[0].write(drawn)
    archives[0].close()
    with pytest.raises(
        ValueError, match=r"process 1 of 2 wrote no .samples-00001.npz into .*expected a folder that all"
    ):
        archives[0].merge()
    archives[1].close()
    archives[0].merge()
    archive = np.load(tmp_path / "samples.npz")
    assert archive["index"].tolist() == [1, 4] and archive["x"].tolist() == [[1.0], [4.0]]
    assert archive["condition"].tolist() == [-1, 0] and files(tmp_path) == ["samples.npz"]


def run_test_and_predict(folder: str | Path, **options: Any) -> None:
    """Run a test with grids, then a prediction of 9 samples."""
    folder = Path(folder)
    writer = SampleWriter(str(folder / "samples"), formats=["png", "npz", "shards"], records_per_shard=2)
    run = trainer(folder, writer, SampleGrid(6, columns=3), Drawn(5), **options)
    drawing = module((3, 4, 4), 4, count=9, batch=2)
    run.test(drawing, Stored((3, 4, 4), 4), verbose=False)
    run.predict(drawing, Stored((3, 4, 4), 4))


def test_two_processes_write_the_same_as_one(processes: Processes, tmp_path: Path) -> None:
    function = ("tests.test_callbacks_sample_writer", "run_test_and_predict")
    processes.call_ranks(2, function, tmp_path / "log", folder=str(tmp_path / "two"), devices=2, strategy="ddp")
    run_test_and_predict(tmp_path / "one")
    one, two = tmp_path / "one", tmp_path / "two"
    plain = [name for name in files(one) if not name.endswith((".tar", ".npz"))]
    assert plain == [name for name in files(two) if not name.endswith((".tar", ".npz"))]
    assert "grids/test-0-many.png" in plain and "drawn.json" in plain
    assert json.loads((two / "drawn.json").read_text()) == {"many": [0, 1, 2, 3, 4], "one": [0]}
    for name in plain:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert records(one / "samples") == records(two / "samples")
    mine, theirs = (np.load(run / "samples" / "samples.npz") for run in (one, two))
    assert all((mine[name] == theirs[name]).all() for name in ("x", "index", "condition"))
    shards = sorted(path.name for path in (two / "samples").glob("*.tar"))
    assert shards == [
        f"samples-{rank:05d}-{number:06d}.tar" for rank, number in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
