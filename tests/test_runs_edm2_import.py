"""Published EDM2 snapshots: read without running them, and the same denoiser afterwards."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.runs.edm2_import import import_snapshot
from lightning_guide.runs.edm2_pickle import read_edm2_pickle
from lightning_guide.runs.models import finished_model
from lightning_guide.snapshots import SnapshotStore
from scripts.benchmarks.direct_edm2 import DirectEDM2
from tests.persistent_pickles import Written, published_modules, tree
from tests.small_networks import save_autoencoder

NAME = "edm2-img64-s-0134217-0.075.pkl"
IMAGES = 134_217_728  # 2^27
SETTINGS: dict[str, Any] = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


@pytest.fixture(name="published_modules")
def modules() -> Iterator[None]:
    """The modules that the writer of such a file has, alive only while it is written."""
    with published_modules():
        yield


def half(net: DirectEDM2) -> dict[str, Tensor]:
    """All tensors in float16, parameters as parameters."""
    return {
        name: nn.Parameter(t.detach().half(), requires_grad=False) if isinstance(t, nn.Parameter) else t.half()
        for name, t in net.tensors.items()
    }


def direct(num_classes: int = 4, channels: int = 3) -> DirectEDM2:
    """A small network with no silent branch, rounded to float16."""
    net = DirectEDM2(channels, 8, num_classes=num_classes, **SETTINGS).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.tensors.items():
            if name.endswith("gain"):
                tensor.fill_(0.5 + 0.5 * torch.rand((), generator=generator))
            tensor.copy_(tensor.half())
    return net


def write(path: Path, net: DirectEDM2, *, encoder: Written | None = None, protocol: int = 4, **changes: Any) -> Path:
    """The file, as published: float16, inside a dict with attributes."""
    ema = tree(half(net))
    ema.attributes["_init_args"], channels = (), len(net.tensors["unet.out_conv.weight"])
    arguments = {
        "img_resolution": 8,
        "img_channels": channels,
        "label_dim": net.num_classes,
        "use_fp16": True,
        **SETTINGS,
    }
    ema.attributes["_init_kwargs"] = sys.modules["dnnlib.util"].EasyDict(arguments | changes)
    encoder, loss = encoder or Written("StandardRGBEncoder"), Written("EDM2Loss", P_mean=-0.8, P_std=1.6)
    content = sys.modules["dnnlib.util"].EasyDict(ema=ema, encoder=encoder, loss_fn=loss, dataset_kwargs={"path": "x"})
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def published(tmp_path: Path, published_modules: None) -> tuple[Path, DirectEDM2]:
    net = direct()
    return write(tmp_path / NAME, net), net


@pytest.mark.parametrize("num_classes", [0, 4])
def test_the_imported_denoiser_is_the_published_one(
    tmp_path: Path, published_modules: None, num_classes: int, generator: torch.Generator
) -> None:
    net = direct(num_classes)
    path = write(tmp_path / NAME, net)
    import_snapshot("edm2", str(path), str(tmp_path / "run"))
    (entry,) = SnapshotStore(tmp_path / "run" / "snapshots").entries()
    assert (entry.images, entry.sigma_rel) == (IMAGES, 0.075)
    model = finished_model(tmp_path / "run", None, 0.075)
    x, sigma = 3 * torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.05, 0.7, 9.0])
    labels, one_hot = torch.tensor([0, 3, -1]), torch.zeros(3, 4)
    one_hot[0, 0] = one_hot[1, 3] = 1
    with torch.no_grad():
        expected = net(x, sigma, one_hot if num_classes else None)
        for each in (model, lg.load(f"edm2:{path}")):
            torch.testing.assert_close(each(x, sigma, labels if num_classes else None), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, x * (0.25 / (sigma**2 + 0.25))[:, None, None, None], atol=0.1)


def test_it_is_stored_in_float16_as_published(tmp_path: Path, published: tuple[Path, DirectEDM2]) -> None:
    import_snapshot("edm2", str(published[0]), str(tmp_path / "run"))
    store = SnapshotStore(tmp_path / "run" / "snapshots")
    tensors, metadata = store.load(store.entries()[0])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert torch.equal(tensors["network.output.weight"], published[1].tensors["unet.out_conv.weight"].half())
    assert sum(t.numel() for t in tensors.values()) == sum(
        t.numel() for name, t in published[1].tensors.items() if not name.startswith("logvar")
    )
    assert metadata.recipe["init_args"]["network"]["init_args"]["attention_resolutions"] == [4]


@pytest.mark.filterwarnings("ignore:Total length of")  # NoData
@pytest.mark.filterwarnings("ignore:.*away from itself")  # one snapshot is all there is
def test_predict_and_validate_run_on_it(tmp_path: Path, published: tuple[Path, DirectEDM2]) -> None:
    run = tmp_path / "run"
    main(["import", "edm2", str(published[0]), str(run)])
    itself = {"class_path": "Snapshot", "init_args": {"run": str(run), "images": IMAGES, "sigma_rel": 0.075}}
    guidance = {"class_path": "Autoguidance", "init_args": {"guider": itself}}
    evaluations = {"unguided": {"num_samples": 3}, "guided": {"num_samples": 3, "guidance": guidance}}
    model = {"prediction": {"num_samples": 3}, "evaluations": evaluations}
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False}
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump({"trainer": trainer, "model": {"init_args": model}}))
    for command in ("predict", "validate"):
        main([command, "-c", str(run / "config.yaml"), "-c", str(few)])
    assert len(list((run / "samples").rglob("*.png"))) == 3
    written = ("report/metrics.json", "gallery/gallery.png", "report.html")
    assert all((run / name).is_file() for name in written), "as runs of other published models"
    assert len(list((run / "grids").glob("validate-*-guided.png"))) == 1


def test_age_and_width_may_be_said(tmp_path: Path, published: tuple[Path, DirectEDM2]) -> None:
    other = published[0].rename(tmp_path / "snapshot.pkl")
    with pytest.raises(ValueError, match="expected --images and --sigma_rel"):
        import_snapshot("edm2", str(other), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    import_snapshot("edm2", str(other), str(tmp_path / "run"), images=7, sigma_rel=0.1)
    assert SnapshotStore(tmp_path / "run" / "snapshots").entries()[0].images == 7
    with pytest.raises(ValueError, match="already holds a run"):
        import_snapshot("edm2", str(other), str(tmp_path / "run"), images=7, sigma_rel=0.1)


MEAN, STD = np.array([5.81, 3.25, 0.12, -2.15], "f4"), np.array([4.17, 4.62, 3.71, 3.28], "f4")


def latent_encoder(vae: Path, **changes: Any) -> Written:
    """The encoder of the published latent models, whose statistics are arrays of numpy."""
    scale = np.float32(0.5) / STD
    state = {"vae_name": str(vae), "batch_size": 8, "_vae": None, "scale": scale, "bias": -MEAN * scale}
    return Written("StabilityVAEEncoder", **state | changes)


@pytest.mark.parametrize("protocol", [4, 5])
def test_latents_are_decoded_by_the_autoencoder_in_the_file(
    tmp_path: Path, published_modules: None, protocol: int
) -> None:
    pytest.importorskip("diffusers", reason="needs the extra `latents`")
    save_autoencoder(tmp_path / "vae")
    path = write(tmp_path / NAME, direct(channels=4), encoder=latent_encoder(tmp_path / "vae"), protocol=protocol)
    main(["import", "edm2", str(path), str(tmp_path / "run")])
    data = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["init_args"]
    assert data["mean"] == pytest.approx(MEAN.tolist(), abs=1e-6) and data["data_shape"] == [4, 8, 8]
    assert data["std"] == pytest.approx(STD.tolist(), abs=1e-6)
    if protocol == 4:
        writer = {"class_path": "callbacks.SampleWriter"}
        trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "callbacks": [writer]}
        few = {"trainer": trainer, "model": {"init_args": {"prediction": {"num_samples": 2}}}}
        (tmp_path / "few.yaml").write_text(yaml.safe_dump(few))
        main(["predict", "-c", str(tmp_path / "run/config.yaml"), "-c", str(tmp_path / "few.yaml")])
        assert {Image.open(file).size for file in (tmp_path / "run").rglob("*.png")} == {(16, 16)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": np.zeros(4, "f4")}, "is damaged"),
        ({"scale": None}, "is damaged"),
        ({"bias": np.zeros(3, "f4")}, "is damaged"),
        ({"bias": np.array([None])}, "cannot be read as an EDM2 snapshot: it holds an array of 'O8', expected numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
def test_damaged_statistics_of_latents(
    tmp_path: Path, published_modules: None, changes: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / NAME, direct(channels=4), encoder=latent_encoder(tmp_path, **changes))
    with pytest.raises(ValueError, match=sentence):
        import_snapshot("edm2", str(path), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# What a file may not do


class Bomb:
    """Calls any function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def hostile(tmp_path: Path) -> dict[str, bytes]:
    """Files that would do something, by what they do."""
    mark = str(tmp_path / "mark")
    inner = io.BytesIO()
    torch.save(Bomb(os.mkdir, mark), inner)
    storage = sys.modules["torch.storage"]._load_from_bytes  # type: ignore[attr-defined]
    return {
        "posix.mkdir": pickle.dumps({"ema": Bomb(os.mkdir, mark)}),
        "builtins.eval": pickle.dumps(Bomb(eval, f"__import__('os').mkdir({mark!r})")),
        "builtins.getattr": pickle.dumps(Bomb(getattr, OrderedDict, "fromkeys")),
        "torch.serialization.load": pickle.dumps(Bomb(torch.load, mark)),
        "numpy": pickle.dumps(Bomb(__import__("numpy").load, mark)),
        "inside a storage": pickle.dumps({"ema": Bomb(storage, inner.getvalue())}),
    }


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("posix.mkdir", r"posix\.mkdir"),
        ("builtins.eval", r"builtins\.eval"),
        ("builtins.getattr", r"builtins\.getattr"),
        ("torch.serialization.load", r"torch\.serialization\.load"),
        ("numpy", r"numpy\.\S*load"),
        ("inside a storage", r"posix\.mkdir"),
    ],
)
def test_a_bomb_is_named_and_does_not_go_off(tmp_path: Path, kind: str, named: str) -> None:
    path = tmp_path / NAME
    path.write_bytes(hostile(tmp_path)[kind])
    with pytest.raises(ValueError, match=rf"{NAME} cannot be read as an EDM2 snapshot: .*{named}"):
        import_snapshot("edm2", str(path), str(tmp_path / "run"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "run").exists()


def test_functions_of_the_reader_cannot_be_altered(tmp_path: Path) -> None:
    path = tmp_path / NAME
    # GLOBAL torch._utils._rebuild_parameter, then BUILD with a state, as a pickle may do to any object
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(ValueError, match="it alters a function"):
        read_edm2_pickle(path)


def test_bytes_that_are_used_again_and_again_are_refused(tmp_path: Path) -> None:
    """1,000 arrays of one text would take a thousand times the file's size."""
    text = "a" * 10_000
    content = [Bomb(codecs.encode, text, "latin1") for _ in range(1000)]
    (tmp_path / NAME).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="its arrays have more bytes than the file"):
        read_edm2_pickle(tmp_path / NAME)


def test_a_module_within_itself_is_refused(tmp_path: Path, published_modules: None) -> None:
    ema = tree(half(direct()))
    ema.attributes |= {"_init_args": (), "_init_kwargs": {"img_resolution": 8, "img_channels": 3, **SETTINGS}}
    block = Written("Block", _modules={})
    ema.attributes["_modules"] |= {"a": block, "b": block}
    (tmp_path / NAME).write_bytes(pickle.dumps({"ema": ema}))
    with pytest.raises(ValueError, match="b is a module that occurs twice; expected a stored module"):
        import_snapshot("edm2", str(tmp_path / NAME), str(tmp_path / "run"))


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor_v2
    storage = torch.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True)
    path = tmp_path / NAME
    path.write_bytes(pickle.dumps({"ema": Bomb(rebuild, storage, 0, (9,), (1,), False, OrderedDict())}))
    with pytest.raises(ValueError, match="out of bounds"):
        read_edm2_pickle(path)


def test_cut_off_files_and_other_pickles_are_named(tmp_path: Path, published: tuple[Path, DirectEDM2]) -> None:
    data = published[0].read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        published[0].write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"{NAME} cannot be read as an EDM2 snapshot"):
            read_edm2_pickle(published[0])
    published[0].write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ValueError, match="expected a dict with the network under 'ema', found \\['weights'\\]"):
        read_edm2_pickle(published[0])
    with pytest.raises(OSError, match="No such file"):
        read_edm2_pickle(tmp_path / "missing.pkl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_dim": 7}, r"embedding_label.weight is \(128, 4\); expected \(128, 7\)"),
        ({"model_channels": 128}, r"is \(\d+, .*\); expected"),
        ({"channel_mult_emb": 2}, "sets channel_mult_emb"),
        ({"attention": "flash"}, r"unknown arguments \['attention'\]"),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused(
    tmp_path: Path, published_modules: None, changes: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / NAME, direct(), **changes)
    with pytest.raises(ValueError, match=sentence):
        import_snapshot("edm2", str(path), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes", [{"label_dim": 10**9}, {"channel_mult": 3}, {"num_blocks": None}, {"img_channels": -1}]
)
def test_settings_that_mean_nothing_are_one_sentence(
    tmp_path: Path, published_modules: None, changes: dict[str, Any]
) -> None:
    """The first would need 512 GB, if a network were built to be compared with."""
    path = write(tmp_path / NAME, direct(), **changes)
    with pytest.raises(ValueError, match=f"{NAME}: (the network in it cannot be built again: .*Error|.*; expected)"):
        import_snapshot("edm2", str(path), str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["_init_args", "_init_kwargs", "_parameters", "_buffers", "_modules"])
def test_attributes_that_are_none_are_one_sentence(tmp_path: Path, published_modules: None, name: str) -> None:
    ema = tree(half(direct()))
    ema.attributes |= {"_init_args": (), "_init_kwargs": {"img_resolution": 8, "img_channels": 3, **SETTINGS}}
    ema.attributes[name] = 7
    (tmp_path / NAME).write_bytes(pickle.dumps({"ema": ema}))
    with pytest.raises(ValueError, match=f"{NAME}: the network in it cannot be built again: .*Error"):
        import_snapshot("edm2", str(tmp_path / NAME), str(tmp_path / "run"))
    with pytest.raises(ValueError, match="missing.pkl does not exist; expected a published snapshot"):
        import_snapshot("edm2", str(tmp_path / "missing.pkl"), str(tmp_path / "run"))
    with pytest.raises(ValueError, match="missing.pkl does not exist; expected a published snapshot"):
        lg.load(f"edm2:{tmp_path}/missing.pkl")
