"""Images with captions for published models: what a batch holds, what is encoded when, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import lightning_guide as lg
from datamodules import AspectBuckets, CaptionedImages
from lightning_guide.conditioning import drop_condition, token_mask
from lightning_guide.data import Batch
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.training.losses import EpsilonLoss
from lightning_guide.utils.images import encode_png
from tests.runs import tiny_trainer

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
Tiny = Callable[[str], Path]
SIZES = [(20, 20), (16, 30), (40, 20), (16, 16), (24, 36), (18, 20), (30, 16), (22, 33)]


def write_images(folder: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i, (height, width) in enumerate(sizes):
        pixels = torch.randint(256, (3, height, width), generator=generator).to(torch.uint8)
        (folder / f"{i}.png").write_bytes(encode_png(pixels))
        (folder / f"{i}.txt").write_text(f"number {i}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("captions") / "images")


def captioned(images: Path, source: Path, cache: Path, **options: Any) -> CaptionedImages:
    chosen = {"heldout": 0.0, "batch_size": 2, "cache": str(cache), "device": "cpu"}
    return CaptionedImages(str(images), f"diffusers:{source}", **(chosen | options))


def batches(data: CaptionedImages, count: int) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), count))


def test_a_batch_holds_latents_and_tokens_of_the_model(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    source = tiny_pipeline("sd")
    data = captioned(images, source, tmp_path, batch_size=8)
    data.prepare_data()
    assert not data._encoders._loaded  # dropped from memory
    assert data.data_shape == (4, 8, 8) and data.token_channels == 16
    (batch,) = batches(data, 1)
    numbers = [int(image.caption[-1]) for image in data.training().images]
    assert numbers == list(range(8)) and batch.condition is not None
    expected = lg.encode_prompts(source, [f"number {i}" for i in numbers])
    order = [int((expected - tokens).abs().amax((1, 2)).argmin()) for tokens in batch.condition]
    assert sorted(order) == numbers
    torch.testing.assert_close(batch.condition, expected[order], rtol=1e-3, atol=1e-3)  # half precision
    space = DiffusersFolder(source).latent_space()
    assert space is not None and space.vae is not None
    stored = torch.stack([data.training()[i][0] for i in order])
    mean, std = stored.chunk(2, dim=1)
    z = ((batch.x - mean) / std).flatten()
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1  # a fresh draw of the posterior
    pixels = torch.from_numpy(np.asarray(Image.open(images / "3.png")) / 255).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(data.training()[3][0][:4], space.vae.posterior(pixels).mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.encode(batch.x), 0.18215 * batch.x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(data.decode(data.encode(batch.x)), space.decode(space.encode(batch.x)))
    assert next(iter(data.reference(torch.device("cpu")))).x.shape == (8, 3, 16, 16)


def test_everything_is_encoded_once(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_pipeline("sd"), tmp_path / "model")
    files = shutil.copytree(images, tmp_path / "images")

    def states() -> dict[Path, int]:
        data = captioned(files, source, tmp_path / "cache")
        data.prepare_data()
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*") if path.is_file()}

    first = states()
    latents = next((tmp_path / "cache/latents").rglob("*.safetensors"))
    (left := latents.with_name(f".{latents.name}.0.tmp")).touch()  # by a killed process
    os.utime(left, ns=(0, 1))
    assert len(first) == 16 and states() == first
    (files / "8.png").write_bytes((files / "0.png").read_bytes())
    (files / "8.txt").write_text("number 0")
    more = states()
    assert len(more) == 17 and first.items() <= more.items()  # one image, no text
    os.utime(source / "vae/diffusion_pytorch_model.safetensors", ns=(0, 1))  # another autoencoder
    assert len(states()) == 17 + 9
    os.utime(source / "text_encoder/model.safetensors", ns=(0, 1))
    assert len(states()) == 17 + 9 + 8


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"])
def test_a_dropped_caption_is_the_empty_prompt_of_the_pipeline(
    name: str, images: Path, tiny_pipeline: Tiny, tmp_path: Path
) -> None:
    source = tiny_pipeline(name)
    model = lg.load(f"diffusers:{source}")
    (batch,) = batches(captioned(images, source, tmp_path), 1)
    assert batch.condition is not None
    dropped = drop_condition(batch.condition, torch.tensor([True, False]))
    empty = lg.encode_prompts(source, [""])[0]
    empty = torch.zeros_like(empty) if name == "sdxl" else empty  # as its folder says
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(1.0)
    found = model(x, sigma, dropped)
    expected = model(x, sigma, torch.stack([empty, batch.condition[1]]))
    assert (found - expected).abs().max() < 1e-4 * found.std()
    assert (found - model(x, sigma, batch.condition))[0].abs().max() > 1e-3 * found.std()
    assert torch.equal(found[1], model(x, sigma, batch.condition)[1])


def test_tokens_of_t5_end_where_the_caption_does(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    data = captioned(images, tiny_pipeline("pixart"), tmp_path, batch_size=2)
    files = shutil.copytree(images, tmp_path / "images")
    (files / "0.txt").write_text("number 0 " * 5)
    data = captioned(files, tiny_pipeline("pixart"), tmp_path)
    (short, long) = (data.training()[i][1] for i in (1, 0))
    assert len(short) == len(long) == 120
    lengths = [int(token_mask(tokens).sum()) for tokens in (short, long)]
    assert lengths[0] < lengths[1] < 120 and not token_mask(short)[lengths[0] :].any()
    model = lg.load(f"diffusers:{tiny_pipeline('pixart')}")
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor(1.0)
    whole, cut = (model(x, sigma, tokens[None]) for tokens in (short, short[: lengths[0]]))
    # ``empty`` pads what is shorter than it; both have the same mask
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)


def test_images_of_a_model_of_pixels(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    data = captioned(images, tiny_pipeline("if"), tmp_path)
    (batch,) = batches(data, 1)
    assert data.data_shape == (3, 8, 8) and batch.x.dtype == torch.uint8 and batch.x.shape == (2, 3, 8, 8)
    assert torch.equal(data.decode(data.encode(batch.x)), batch.x)
    assert batch.condition is not None and batch.condition.shape == (2, 77, 32)


def test_heldout_images_and_prompts(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    data = captioned(images, tiny_pipeline("sd"), tmp_path, heldout=0.2, buckets=AspectBuckets(step=4))
    held = data.prompt_texts
    assert held is not None and 0 < len(held) < 8 and len(data.training()) + len(data.heldout()) == 8
    assert not {image.caption for image in data.training().images} & set(held)
    (loader,) = data.val_dataloader()
    assert [tuple(batch.x.shape[1:]) for batch in loader] == [(4, 8, 8)] * len(loader)
    torch.testing.assert_close(data.prompts()[torch.tensor([0])][0], data.heldout()[0][1])
    other = captioned(images, tiny_pipeline("sd"), tmp_path, prompts=["a", "b"])
    assert other.prompt_texts == ["a", "b"] and len(other.heldout()) == 0 and len(other.prompts()) == 2


def test_buckets_give_batches_of_one_size_and_resume(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"buckets": AspectBuckets(step=4, block=4), "batch_size": 4}
    data = captioned(images, tiny_pipeline("sd"), tmp_path, **options)
    found = batches(data, 8)
    assert len({batch.x.shape for batch in found}) > 2 and all(len(batch.x) == 4 for batch in found)
    small = captioned(images, tiny_pipeline("sd"), tmp_path, **options | {"batch_size": 2})
    small._images_seen = lambda: 8  # type: ignore[method-assign]
    for whole, one, two in zip(found[2:4], *[iter(batches(small, 4))] * 2, strict=True):
        assert torch.equal(whole.x, torch.cat([one.x, two.x]))


class Shapes(DiffusionModule):
    """Training that records its batches."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen = [*getattr(self, "seen", []), (self.images_seen, batch)]
        return super().training_step(batch, batch_idx)


def test_low_rank_training_in_buckets(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    source = tiny_pipeline("sdxl")
    denoiser = LowRank(lg.load(f"diffusers:{source}"), rank=2)
    module = Shapes(denoiser, EpsilonLoss(), label_dropout=0.5, average=None)
    trainer = tiny_trainer(tmp_path, steps=6)
    trainer.fit(module, captioned(images, source, tmp_path / "cache", buckets=AspectBuckets(step=4)))
    assert module.images_seen == 12 and len({batch.x.shape for _, batch in module.seen}) > 1
    assert any(bool(added.up.any()) for _, added in denoiser.additions())
    for _, batch in module.seen:
        assert batch.condition[:, 0, -2:].tolist() == [[2 * side for side in batch.x.shape[2:]]] * 2  # target sizes


def test_corrupt_and_small_images(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    files = shutil.copytree(images, tmp_path / "images")
    (files / "1.png").write_bytes(b"no image")
    small = write_images(tmp_path / "small", [(10, 12)])
    (files / "2.png").write_bytes((small / "0.png").read_bytes())
    data = captioned(files, tiny_pipeline("sd"), tmp_path / "cache")
    with pytest.warns(UserWarning) as found:
        assert [image.name[0] for image in data.training().images] == list("0234567")
    messages = [str(each.message) for each in found if "images" in str(each.message)]
    assert "1 of 8 images are corrupt and left out; first: 1.png in" in messages[0]
    assert "1 of 8 images in" in messages[1] and "were enlarged; first: 2.png in" in messages[1]
    expected = lg.encode_prompts(tiny_pipeline("sd"), ["number 3"])[0]
    torch.testing.assert_close(data.training()[2][1], expected, rtol=1e-3, atol=1e-3)  # still its own caption
    path = data.training().paths[0]
    assert set(load_file(path)) == {"x", "sizes"}
    path.write_bytes(path.read_bytes()[:20])
    with (
        pytest.warns(UserWarning, match="corrupt"),
        pytest.raises(ValueError, match="the encoded 0.png in .*, is damaged .* delete it"),
    ):
        captioned(files, tiny_pipeline("sd"), tmp_path / "cache").training()
    bad = write_images(tmp_path / "bad", [(16, 16)])
    (bad / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 1 images in .* can be decoded; first: 0.png"):
        captioned(bad, tiny_pipeline("sd"), tmp_path / "cache").training()


@pytest.mark.parametrize(("options", "message"), [
    ({"size": 15}, r"images have the size \[15, 15\] .*; expected multiples of 2 pixels"),
    ({"buckets": AspectBuckets(step=3)}, r"the step 3; expected multiples of 2 pixels"),
    ({"buckets": AspectBuckets(step=6)}, "the size 16x16 is no multiple of the step of buckets, 6 pixels"),
    ({"buckets": AspectBuckets(step=4, block=3)}, "expected a multiple of batch_size, 2"),
    ({"heldout": 1.0}, "heldout is 1.0; expected a place of images, or a share"),
    ({"heldout": "nowhere"}, "no file or folder matches 'nowhere'"),
    ({"prompts": []}, "expected one text or more"),
])  # fmt: skip
def test_bad_settings(options: dict[str, Any], message: str, images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        captioned(images, tiny_pipeline("sd"), tmp_path, **options)


def test_a_model_of_another_size_is_refused(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    module = DiffusionModule(lg.load(f"diffusers:{tiny_pipeline('sd')}"), EpsilonLoss(), average=None)
    data = captioned(images, tiny_pipeline("sd"), tmp_path, size=[16, 24])
    with pytest.raises(ValueError, match=r"the data has shape \(4, 8, 12\), the network expects \(4, 8, 8\)"):
        tiny_trainer(tmp_path, steps=1).fit(module, data)


def test_long_captions_say_where_they_are_cut(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    files = shutil.copytree(images, tmp_path / "images")
    for i in range(6):
        (files / f"{i}.txt").write_text(f"{i} " * 100)
    with pytest.warns(UserWarning) as found:
        captioned(files, tiny_pipeline("sd"), tmp_path / "cache").prepare_data()
    cuts = [str(each.message) for each in found if " cut after " in str(each.message)]
    assert len(cuts) == 4 and "tokens, of which StableDiffusionPipeline reads 77: it is cut after" in cuts[0]
    assert cuts[3].startswith("3 more of 8 prompts are cut")


SCRIPT = """
import sys
import torch
from lightning.pytorch.strategies import DDPStrategy
import lightning_guide as lg
from datamodules import AspectBuckets, CaptionedImages
from lightning_guide.optimization import LowRank
from lightning_guide.training.losses import EpsilonLoss
from tests.runs import tiny_trainer
from tests.test_datamodules_captioned_images import Shapes

if __name__ == "__main__":
    images, source, folder = sys.argv[1:]
    data = CaptionedImages(images, source, heldout=0, batch_size=2, cache=f"{folder}/cache", device="cpu",
                           buckets=AspectBuckets(step=4, block=4))
    module = Shapes(LowRank(lg.load(f"diffusers:{source}"), rank=2), EpsilonLoss(), average=None)
    strategy = DDPStrategy(broadcast_buffers=False)
    trainer = tiny_trainer(folder, steps=4, devices=2, strategy=strategy)
    trainer.fit(module, data)
    torch.save([tuple(batch) for _, batch in module.seen], f"{folder}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_see_the_batches_of_one(images: Path, tiny_pipeline: Tiny, tmp_path: Path) -> None:
    source = tiny_pipeline("sd")
    (tmp_path / "fit.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "fit.py"), str(images), str(source), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    options: dict[str, Any] = {"buckets": AspectBuckets(step=4), "batch_size": 4}
    single = batches(captioned(images, source, tmp_path / "cache", **options), 4)
    for batch, one, other in zip(single, *ranks, strict=True):
        assert batch.condition is not None and torch.equal(batch.condition, torch.cat([one[1], other[1]]))
        torch.testing.assert_close(0.18215 * batch.x, torch.cat([one[0], other[0]]))
