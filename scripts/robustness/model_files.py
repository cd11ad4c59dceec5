"""Files of models and of reference statistics, to be damaged (`MODELS`)."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_guide.evaluation.features import RawPixels
from lightning_guide.evaluation.reference.statistics import Statistics, read_statistics, write_statistics
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.pretrained.loading import read_weights
from lightning_guide.runs.checkpoints import read_checkpoint
from lightning_guide.runs.edm2_pickle import Stored, read_edm2_pickle, tensors_of
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.snapshots.file import read
from scripts.robustness.edm2_file import write_edm2_pickle
from scripts.robustness.subject import Subject, digest, make_file

__all__ = ["MODELS"]


def _gaussian() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((40, 4))
    return x.mean(0), np.cov(x.T)


def _make_statistics(folder: Path) -> Path:
    mean, covariance = (torch.from_numpy(each) for each in _gaussian())
    statistics = Statistics(mean, covariance, 40, RawPixels().identity, (1, 2, 2), "data")
    return write_statistics(folder / "a.npz", statistics)


def _make_published(folder: Path) -> Path:
    mu, sigma = _gaussian()
    return make_file(folder, "a.pkl", pickle.dumps({"fid": {"mu": mu, "sigma": sigma}, "num_images": 40}))


class _Published(RawPixels):
    published = "fid"


def _read_statistics(path: Path, published: bool = False) -> list[Any]:
    found = read_statistics(path, _Published() if published else RawPixels())
    return [digest(found.mean), digest(found.covariance), found.num_images, found.data_shape, found.data]


def _network() -> SmallClassifier:
    torch.manual_seed(0)
    return SmallClassifier((1, 8, 8), num_classes=3, widths=(8, 8), num_features=8)


def _make_snapshot(folder: Path) -> Path:
    network = _network()
    tensors = {name: tensor for name, tensor in network.state_dict().items()}
    return SnapshotStore(folder).save(tensors, images=8, sigma_rel=0.05, recipe=network.recipe)


def _read_snapshot(path: Path) -> list[Any]:
    tensors, metadata = read(path)
    return [{name: digest(x) for name, x in tensors.items()}, str(metadata)]


def _make_index(folder: Path) -> Path:
    _make_snapshot(folder)
    return folder / "index.json"


def _read_index(path: Path) -> list[str]:
    return [entry.path.name for entry in SnapshotStore(path.parent).entries()]


def _make_checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": _network().state_dict(), "global_step": 4}, folder / "step-000000004.ckpt")
    return folder / "step-000000004.ckpt"


def _read_checkpoint(path: Path) -> list[Any]:
    content = read_checkpoint(path)
    return [{name: digest(x) for name, x in content["state_dict"].items()}, content["global_step"]]


def _make_weights(folder: Path, name: str) -> Path:
    from safetensors.torch import save_file

    (torch.save if name.endswith(".pt") else save_file)(_network().state_dict(), folder / name)
    return folder / name


def _read_weights(path: Path) -> list[str]:
    network = _network()
    read_weights(network, str(path))
    return [digest(x) for x in network.state_dict().values()]


def _make_edm2(folder: Path) -> Path:
    return write_edm2_pickle(folder / "a.pkl", _network().state_dict())


def _read_edm2(path: Path) -> list[Any]:
    content = read_edm2_pickle(path)
    encoder = content.get("encoder")
    state = encoder.state if isinstance(encoder, Stored) else {}
    numbers = {str(name): np.asarray(value).tolist() for name, value in state.items()}
    return [*((name, digest(x)) for name, x in tensors_of(content["ema"])), numbers]


MODELS: dict[str, Subject] = {
    "statistics npz": Subject(_make_statistics, _read_statistics, checked=True),
    "statistics pickle": Subject(_make_published, partial(_read_statistics, published=True)),
    "snapshot": Subject(_make_snapshot, _read_snapshot, checked=True),
    "snapshot index": Subject(_make_index, _read_index, checked=True),
    "checkpoint": Subject(_make_checkpoint, _read_checkpoint, checked=True),
    "weights safetensors": Subject(partial(_make_weights, name="a.safetensors"), _read_weights),
    "weights torch": Subject(partial(_make_weights, name="a.pt"), _read_weights, checked=True),
    "edm2 pickle": Subject(_make_edm2, _read_edm2),
}
