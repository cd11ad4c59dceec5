"""Latents: encoding of shards, fresh samples by position, and decoding for metrics."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from callbacks import SampleGrid
from datamodules import Latents, NoData, Shards
from datamodules.commands.encode import encode
from datamodules.stream import Stream
from lightning_guide.cli import main
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained.autoencoders import DiffusersVAE, Posterior, VariationalAutoencoder
from lightning_guide.training.losses import EDMLoss
from tests.runs import TinyNetwork, evaluation, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:the latents in")  # random networks of arbitrary scale


class Halves(VariationalAutoencoder):
    """Latents are the mean of 2x2 pixels of each channel, times `gain`; their std is 0.01 (c + 1)."""

    def __init__(self, gain: float = 3.0) -> None:
        super().__init__()
        self.gain, self.calls = gain, 0

    def posterior(self, x: Tensor) -> Posterior:
        self.calls += 1
        mean = self.gain * nn.functional.avg_pool2d(x, 2)
        return Posterior(mean, 0.01 * torch.arange(1, 4).reshape(1, 3, 1, 1).expand_as(mean))

    def decode(self, z: Tensor) -> Tensor:
        return nn.functional.interpolate(z / self.gain, scale_factor=2)


PIXELS = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def shard(path: Path, numbers: range, **beside: Any) -> None:
    """Write images of PIXELS with labels number % 3 and further files made from the number by `beside`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            image = io.BytesIO()
            Image.fromarray(PIXELS[i]).save(image, "PNG")
            files = {"png": image.getvalue(), "cls": str(i % 3).encode()}
            for name, content in (files | {key: make(i) for key, make in beside.items()}).items():
                if content is None:
                    continue
                member = tarfile.TarInfo(f"{i:04d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    def tokens(i: int) -> bytes:
        return npy(np.full((i % 2 + 1 if i < 5 else 2, 2), i + 1.0))

    shard(tmp_path / "pixels/train-00000.tar", range(5), **{"tokens.npy": tokens})
    shard(tmp_path / "pixels/train-00001.tar", range(5, 11), **{"tokens.npy": tokens})
    encode(str(tmp_path / "pixels/train-*.tar"), str(tmp_path / "latents"), vae=Halves(), batch_size=4, device="cpu")
    return tmp_path


def means() -> Tensor:
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).double() / 255
    return 3 * nn.functional.avg_pool2d(x, 2)  # (11, 3, 2, 2)


def latents(folder: Path, **options: Any) -> Latents:
    chosen: dict[str, Any] = {"mean": (1.0, 1.5, 2.0), "std": (0.5, 1.0, 2.0), "num_classes": 3, "batch_size": 4}
    paths = str(folder / "latents/train-*.tar")
    return Latents(paths, paths, **(chosen | options))


def test_remote_images_and_latents(encoded: Path) -> None:
    remote, copies = [f"pipe:cat {encoded}/pixels/train-0000{i}.tar" for i in range(2)], str(encoded / "copies")
    encode(remote, str(encoded / "remote"), vae=Halves(), batch_size=4, device="cpu", downloads=copies)
    made = sorted((encoded / "remote").glob("*.tar"))
    local = sorted((encoded / "latents").glob("*.tar"))
    assert sorted(path.read_bytes() for path in made) == sorted(path.read_bytes() for path in local)
    urls = [f"pipe:cat {path}" for path in local]
    options: dict[str, Any] = {"mean": (1.0, 1.5, 2.0), "std": (0.5, 1.0, 2.0), "num_classes": 3}
    there, here = Latents(urls, urls[:1], downloads=copies, **options).training(), latents(encoded).training()
    for (x, label), (y, other) in zip((there[i] for i in range(11)), (here[i] for i in range(11)), strict=True):
        assert torch.equal(x, y) and label == other
    with pytest.raises(ValueError, match="is a URL; expected local tar files, or `downloads`"):
        Latents(urls, urls[:1], **options)


def test_encoding_keeps_keys_labels_and_moments(encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = latents(encoded)
    assert data.data_shape == (3, 2, 2)
    x, label = data.training()[7]
    torch.testing.assert_close(x[:3].double(), means()[7], rtol=1e-5, atol=1e-6)
    assert torch.equal(x[3:], 0.01 * torch.arange(1.0, 4).reshape(3, 1, 1).expand(3, 2, 2)) and label == 7 % 3
    inventory = json.loads((encoded / "latents/latents.json").read_text())
    noise = (0.01 * torch.arange(1, 4).double()) ** 2
    std = (means().var((0, 2, 3), correction=0) + noise).sqrt()
    assert inventory["mean"] == pytest.approx(means().mean((0, 2, 3)).tolist(), abs=1e-4)
    assert inventory["std"] == pytest.approx(std.tolist(), abs=1e-4)
    before = (encoded / "latents/train-00001.tar").read_bytes()
    again, arguments = Halves(), (str(encoded / "pixels/train-*.tar"), str(encoded / "latents"))
    encode(*arguments, vae=again)
    assert again.calls == 0  # nothing left to do
    (encoded / "latents/train-00001.tar").write_bytes(before[:2000])  # a truncated shard
    encode(*arguments, vae=again, batch_size=4)
    assert again.calls == 2 and (encoded / "latents/train-00001.tar").read_bytes() == before
    assert "latents of 11 images in 2 shards" in capsys.readouterr().out
    with pytest.raises(ValueError, match="made with other settings: vae.init_args.gain was 3.0 and is now 2.0"):
        encode(*arguments, vae=Halves(2.0))
    with pytest.raises(ValueError, match="holds the images themselves"):
        encode(arguments[0], str(encoded / "pixels"), vae=again)


def test_each_visit_draws_fresh_sample_by_position(encoded: Path) -> None:
    data = latents(encoded, batch_size=11)
    visits = data.visits()
    passes = [visits[range(11 * k, 11 * k + 11)] for k in range(40)]
    again = latents(encoded).visits()[range(15, 18)]
    assert torch.equal(again.x, passes[1].x[4:7])  # a function of the position, not of the batch
    order = [batch.x.double().mean((2, 3)).argsort(0)[:, 0] for batch in passes[:2]]
    assert not torch.equal(order[0], order[1])
    noise = []
    for batch in passes:
        gaps = (batch.x.double()[:, None] - means()).abs().amax((2, 3, 4))  # (11, 11): which image is it?
        assert sorted(gaps.argmin(1).tolist()) == list(range(11))
        noise.append(batch.x.double() - means()[gaps.argmin(1)])
    n = torch.cat(noise) / (0.01 * torch.arange(1, 4).double().reshape(3, 1, 1))  # (440, 3, 2, 2), standard normal
    assert float(n.mean()) == pytest.approx(0, abs=4 / n.numel() ** 0.5)
    assert n.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=4 / (2 * 440 * 4) ** 0.5)
    heldout = data.in_order(data.heldout())
    assert torch.equal(heldout[range(11)].x, data.in_order(data.heldout())[range(11)].x)
    assert torch.equal(heldout[range(3, 11, 4)].x, heldout[range(11)].x[3::4])


def test_normalization_and_decoding(encoded: Path) -> None:
    vae = Halves()
    data = latents(encoded, vae=vae, decode_batch=4)
    z = means().float()
    mean, std = torch.tensor([1.0, 1.5, 2.0]).reshape(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1)
    x = data.encode(z)
    torch.testing.assert_close(x, 0.5 * (z - mean) / std)
    torch.testing.assert_close(latents(encoded).decode(x), z)  # without an autoencoder latents stay latents
    images = data.decode(x)
    blocks = (means() / 3 * 255).round().to(torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert images.dtype == torch.uint8 and images.shape == (11, 3, 4, 4)
    assert (images.int() - blocks.int()).abs().max() <= 1
    assert data.decode(x + 100).min() == 255 and data.decode(x - 100).max() == 0
    only = NoData((3, 2, 2), vae=vae, mean=(1.0, 1.5, 2.0), std=(0.5, 1.0, 2.0))
    assert torch.equal(only.decode(x), images)
    with pytest.raises(ValueError, match="the latents have 3 channels; mean and std have 4"):
        NoData((3, 2, 2), vae=vae)
    with pytest.raises(ValueError, match="all std > 0"):
        latents(encoded, std=(1.0, 0.0, 1.0))
    batch = data.on_after_batch_transfer(data.visits()[range(4)], 0)
    assert batch.x.shape == (4, 3, 2, 2) and batch.x.abs().max() < 3
    cpu = torch.device("cpu")
    reference = data.reference(cpu)
    (decoded,) = reference
    assert [torch.equal(again.x, decoded.x) for again in reference] == [True]  # can be iterated twice
    assert (decoded.x.int() - blocks.int()).abs().float().mean() < 6  # noise of 0.01 to 0.03 over gain 3, times 255
    pixels = str(encoded / "pixels/train-*.tar")
    (real,) = latents(encoded, vae=vae, images=Shards(pixels, pixels, num_classes=3)).reference(cpu)
    assert torch.equal(real.x, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))


def test_embeddings_in_shards(encoded: Path) -> None:
    for data in (
        latents(encoded, num_classes=0, token_channels=2, token_length=3),
        latents(encoded, num_classes=0, token_channels=2, token_length=3, cache=False),
        Shards(*[str(encoded / "pixels/train-*.tar")] * 2, token_channels=2, token_length=3),
    ):
        condition = data.training().take(torch.tensor([3, 4, 6])).condition
        assert condition is not None and condition[:, :, 0].tolist() == [[4, 4, 0], [5, 0, 0], [7, 7, 0]]
        assert torch.equal(data.prompts()[[3, 4, 6]], condition) and len(data.prompts()) == 11
        loader = iter(data.train_dataloader())
        assert next(loader).condition.shape == (data.batch_size, 3, 2)


def test_masks_and_invalid_embeddings(tmp_path: Path) -> None:
    def shards(**beside: Any) -> Shards:
        shard(tmp_path / "a.tar", range(3), **beside)
        return Shards(*[str(tmp_path / "a.tar")] * 2, token_channels=2, token_length=3)

    tokens = {"tokens.npy": lambda i: npy(np.ones((3, 2), dtype=np.float16))}
    data = shards(**tokens, **{"mask.npy": lambda i: npy(np.array([i > 0, True, i > 1]))})
    condition = data.training().take(torch.arange(3)).condition
    assert condition is not None and condition[..., 0].tolist() == [[0, 1, 0], [1, 1, 0], [1, 1, 1]]
    for content, message in (
        (lambda i: npy(np.ones((4, 2))), "record '0000' of .*a.tar: an embedding has 4 tokens; expected at most 3"),
        (lambda i: npy(np.ones((2, 5))), r"no embedding \(L, 2\) in its tokens.npy: found one of shape \(2, 5\)"),
        (lambda i: npy(np.full((2, 2), np.nan)), "record '0000' .*not finite"),
        (lambda i: npy(np.ones((3, 2), dtype=np.complex64)), "not an array of real numbers: .* and type complex64"),
        (lambda i: b"text", "tokens.npy of record '0000' of .*a.tar is not an array of real numbers"),
        (lambda i: None, "record '0000' .*has no embedding .*found none"),
    ):
        with pytest.raises(ValueError, match=message):
            shards(**{"tokens.npy": content}).training()
    with pytest.raises(ValueError, match="conditions are labels or embeddings"):
        Shards(*[str(tmp_path / "a.tar")] * 2, token_channels=2, num_classes=3)
    with pytest.raises(ValueError, match="holds 0 images; expected exactly one of npy"):
        Latents(*[str(tmp_path / "a.tar")] * 2)


def test_corrupt_images_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "in/a.tar", range(4))
    content = bytearray((tmp_path / "in/a.tar").read_bytes())
    at = content.index(b"\x89PNG", content.index(b"0001.png"))
    content[at + 40 : at + 80] = bytes(40)
    (tmp_path / "in/a.tar").write_bytes(content)
    encode(str(tmp_path / "in/a.tar"), str(tmp_path / "out"), vae=Halves(), batch_size=3)
    assert (
        "latents of 3 images in 1 shard:" in (message := capsys.readouterr().out) and "1 corrupt image left" in message
    )
    data = Latents(*[str(tmp_path / "out/a.tar")] * 2, mean=(0, 0, 0), std=(1, 1, 1), num_classes=3)
    assert data.training().take(torch.arange(3)).condition.tolist() == [0, 2, 0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"as many numbers in mean \(4\) and std \(4\)"):
        Latents(*[str(tmp_path / "out/a.tar")] * 2)


def test_diffusers_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface of AutoencoderKL, by a fake; the real class is tested if diffusers is installed."""

    class AutoencoderKL(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32
        config = SimpleNamespace(latent_channels=3)

        def enable_gradient_checkpointing(self) -> None:
            pass

        @classmethod
        def from_pretrained(cls, path: str, **options: Any) -> Any:
            if path != "here" or options != {"subfolder": "vae", "use_safetensors": True, "output_loading_info": True}:
                raise OSError("not there")
            return cls(), {"missing_keys": [], "unexpected_keys": []}

        def encode(self, x: Tensor) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=x[:, :, ::2, ::2], std=x[:, :, ::2, ::2] * 0 + 0.2))

        def decode(self, z: Tensor) -> Any:
            return SimpleNamespace(sample=nn.functional.interpolate(z, scale_factor=2))

    x = torch.rand(2, 3, 4, 4)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"diffusers library, which is not installed; .*lightning-guide\[latents\]"):
        DiffusersVAE("here").encode(x)
    fake = ModuleType("diffusers")
    fake.AutoencoderKL = AutoencoderKL  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    for lowest in (0.0, -1.0):
        vae = DiffusersVAE("here", subfolder="vae", lowest=lowest)
        mean, std = vae.posterior(x)
        torch.testing.assert_close(mean, lowest + (1 - lowest) * x[:, :, ::2, ::2])
        assert float(std[0, 0, 0, 0]) == pytest.approx(0.2)
        torch.testing.assert_close(vae.decode(mean)[:, :, ::2, ::2], x[:, :, ::2, ::2])  # black decodes to 0, too
    shard(tmp_path / "pixels/a.tar", range(3))
    main(["encode", str(tmp_path / "pixels/a.tar"), str(tmp_path / "z"), "--vae", "DiffusersVAE", "--vae.path", "here",
          "--vae.subfolder", "vae", "--device", "cpu"])  # fmt: skip
    data = Latents(*[str(tmp_path / "z/a.tar")] * 2, mean=[0] * 3, std=[1] * 3)
    z = torch.from_numpy(PIXELS[:3]).permute(0, 3, 1, 2)[:, :, ::2, ::2] / 255
    torch.testing.assert_close(torch.stack([data.training()[i][0][:3] for i in range(3)]), z)  # type: ignore[misc]
    assert not list(vae.parameters()) and "_loaded" not in vae.recipe["init_args"]
    with pytest.raises(ValueError, match=r"no AutoencoderKL can be loaded from 'elsewhere' \(safetensors\): not there"):
        DiffusersVAE("elsewhere").decode(x)


@pytest.mark.slow
def test_diffusers_autoencoder(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    vae = DiffusersVAE(str(tmp_path), lowest=-1.0)
    mean, std = vae.posterior(x)
    expected = model.eval().encode(2 * x - 1).latent_dist
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(std, expected.std)
    torch.testing.assert_close(vae.decode(mean), (model.decode(mean).sample + 1) / 2)


def test_training_loader_reads_stream_of_latents(encoded: Path) -> None:
    data = latents(encoded)
    first = next(iter(data.train_dataloader()))
    assert torch.equal(first.x, data.visits()[next(iter(Stream(4)))].x)


def test_latent_model_is_evaluated_on_images(encoded: Path) -> None:
    pixels = str(encoded / "pixels/train-*.tar")
    data = latents(encoded, vae=Halves(), images=Shards(pixels, pixels, num_classes=3))
    torch.manual_seed(0)
    module = DiffusionModule(
        Preconditioned(TinyNetwork((3, 2, 2))),
        EDMLoss(),
        average=None,
        heldout_sigmas=(0.3,),
        evaluations={"plain": evaluation(num_samples=6, metrics={"fd": FrechetDistance(RawPixels())})},
    )
    trainer = tiny_trainer(encoded / "run", SampleGrid(4), steps=2, limit_val_batches=1.0, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    report = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert report["plain/samples"] == 6 and report["plain/fd"] > 0 and report["heldout/sigma_0.3"] > 0
    grid = Image.open(encoded / "run/grids/fit-8-plain.png")
    assert grid.mode == "RGB" and grid.size == (4 * 66 + 2, 68)  # four images of 4x4 pixels, enlarged to 64x64


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2"])
def test_spread_of_stored_latents(tmp_path: Path, kind: str) -> None:
    """Logarithms of variances are refused unless they are declared; stored as any float, in any byte order."""
    mean = np.arange(12.0).reshape(3, 2, 2)
    log_variance = np.linspace(-8, 1, 12).reshape(3, 2, 2)
    std = np.exp(log_variance / 2)

    def stored(second: np.ndarray, **options: Any) -> Latents:
        array = np.asfortranarray(np.concatenate([mean, second]).astype(kind))
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for number in range(2):
                content = npy(array)
                member = tarfile.TarInfo(f"{number}.npy")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return Latents(*[str(tmp_path / "a.tar")] * 2, mean=[0] * 3, std=[1] * 3, **options)

    expected = torch.from_numpy(np.concatenate([mean, std])).float()
    tolerance = 0.01 if kind == "<f2" else 1e-5
    for second, options in ((std, {}), (log_variance, {"spread": "log_variance"})):
        x = stored(second, **options).training()[1][0]
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="record '0' of .*a.tar: the second half .* goes down to -8; .* log_variance"):
        stored(log_variance)
    with pytest.raises(ValueError, match="record '0' of .*a.tar: the second half .* is at least 0.018"):
        stored(std, spread="log_variance")
    with pytest.raises(ValueError, match="record '0' of .*a.tar: the latents are not finite"):
        stored(std * np.nan)
    with pytest.raises(ValueError, match="spread is 'variance'; expected one of std, log_variance"):
        stored(std, spread="variance")
