"""Failures of encoding: interrupted calls, mixed-up shards, latents read with other settings than encoded."""

from __future__ import annotations

import json
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import Latents, Shards
from datamodules.commands.encode import encode
from datamodules.prompts import PromptFile
from datamodules.storage.image_codec import UndecodableError, decode_sample
from datamodules.stored_latents import is_same_shard, shard_identity
from lightning_guide.pretrained.autoencoders import Posterior
from lightning_guide.pretrained.latent_space import LatentSpace
from tests.test_datamodules_latents import Halves, npy, shard


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Two shards."""
    shard(tmp_path / "pixels/train-00000.tar", range(4))
    shard(tmp_path / "pixels/train-00001.tar", range(4, 8))
    return str(tmp_path / "pixels/train-*.tar")


def test_call_interrupted_before_first_entry_resumes(images: str, tmp_path: Path) -> None:
    """The inventory is written before the first shard."""
    encode(images, str(tmp_path / "full"), vae=Halves())
    expected = {name.name: name.read_bytes() for name in (tmp_path / "full").iterdir()}

    class Dies(Halves):
        def posterior(self, x: Tensor) -> Posterior:
            raise KeyboardInterrupt

    folder = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        encode(images, str(folder), vae=Dies())
    assert [each.name for each in folder.iterdir()] == ["latents.json"]
    encode(images, str(folder), vae=Halves())  # no shard was written yet, so that other settings are allowed
    inventory = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(json.dumps(inventory | {"shards": {}}))  # killed after renaming a shard
    with pytest.raises(ValueError, match="made with other settings: vae.init_args.gain was 3.0 and is now 2.0"):
        encode(images, str(folder), vae=Halves(2.0))
    encode(images, str(folder), vae=Halves())
    assert {name.name: name.read_bytes() for name in folder.iterdir()} == expected


def test_other_images_of_same_name_are_refused(images: str, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    encode(images, str(folder), vae=Halves())
    before = (folder / "train-00000.tar").read_bytes()
    shard(tmp_path / "others/train-00000.tar", range(5, 9))
    with pytest.raises(ValueError, match="holds latents of other images than .*others/train-00000.tar"):
        encode(str(tmp_path / "others/train-*.tar"), str(folder), vae=Halves())
    assert (folder / "train-00000.tar").read_bytes() == before


def test_shards_that_were_corrected_since_are_noticed(images: str, tmp_path: Path) -> None:
    folder, source = tmp_path / "latents", Path(images)
    sources = sorted(source.parent.glob(source.name))
    encode(images, str(folder), vae=Halves())
    for each in sources:  # copied again: the same bytes, another time
        os.utime(each, ns=(1, 1))
    encode(images, str(folder), vae=Halves())
    content = bytearray(sources[-1].read_bytes())
    with tarfile.open(sources[-1]) as tar:
        last = tar.getmembers()[-1]
    content[last.offset_data + last.size] ^= 1  # the same sizes
    sources[-1].write_bytes(content)
    with pytest.raises(ValueError, match=f"of other images than .*{sources[-1].name}, .*or was changed since"):
        encode(images, str(folder), vae=Halves())
    (folder / sources[-1].name).unlink()
    encode(images, str(folder), vae=Halves())
    assert (folder / sources[-1].name).is_file()


def test_a_change_far_behind_the_start_of_a_shard_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(200_000))
    recorded = shard_identity(path)
    assert is_same_shard(path, recorded) and is_same_shard(path, {})
    path.write_bytes(bytes(199_999) + b"1")
    assert not is_same_shard(path, recorded)


def test_invalid_arguments_and_latents_of_encode(images: str, tmp_path: Path) -> None:
    class NaN(Halves):
        def posterior(self, x: Tensor) -> Posterior:
            mean, std = super().posterior(x)
            return Posterior(mean.where(torch.arange(len(mean))[:, None, None, None] != 2, torch.nan), std)

    with pytest.raises(ValueError, match="the latents of record '0002' of .*train-00000.tar are not finite"):
        encode(images, str(tmp_path / "nan"), vae=NaN())
    assert [each.name for each in (tmp_path / "nan").iterdir()] == ["latents.json"]
    with pytest.raises(ValueError, match="size is 0; expected at least 1"):
        encode(images, str(tmp_path / "size"), vae=Halves(), size=0)
    with pytest.raises(ValueError, match="device is 'banana', which is not available"):
        encode(images, str(tmp_path / "device"), vae=Halves(), device="banana")
    for content in ("{broken", "[]", '{"settings": 1, "shards": {}}'):
        (tmp_path / "nan/latents.json").write_text(content)
        with pytest.raises(ValueError, match="latents.json does not record 'settings'"):
            encode(images, str(tmp_path / "nan"), vae=Halves())


def test_latents_read_with_other_settings_warn(images: str, tmp_path: Path) -> None:
    encode(images, str(tmp_path / "latents"), vae=Halves())
    shards = [str(tmp_path / "latents/train-*.tar")] * 2
    own = {key: json.loads((tmp_path / "latents/latents.json").read_text())[key] for key in ("mean", "std")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Latents(*shards, vae=Halves(), **own)
        Latents(*shards, mean=own["mean"], std=[1.4 * s for s in own["std"]])
    with pytest.warns(UserWarning, match="were encoded by .*'gain': 3.0.* decoded by .*'gain': 2.0"):
        Latents(*shards, vae=Halves(2.0), **own)
    with pytest.warns(UserWarning, match="have mean .* are far from mean 0"):
        Latents(*shards, mean=[m + 0.6 * s for m, s in zip(own["mean"], own["std"], strict=True)], std=own["std"])
    with pytest.warns(UserWarning, match="have mean .* are far from mean 0"):
        Latents(*shards, mean=own["mean"], std=[1.6 * s for s in own["std"]])
    with pytest.raises(ValueError, match="all finite"):
        LatentSpace(None, (float("nan"), 0.0), (1.0, 1.0))


@pytest.mark.parametrize("array", [np.float32(1), np.array(["a"]), np.array([True])], ids=["number", "text", "bool"])
def test_arrays_other_than_samples_are_refused(array: object) -> None:
    with pytest.raises(UndecodableError, match="an array of shape"):
        decode_sample(npy(array))


def test_damaged_prompt_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.npz").write_bytes(b"PK\x03\x04damaged")
    with pytest.raises(ValueError, match="prompts.npz cannot be read"):
        PromptFile(str(tmp_path / "prompts.npz"), 2)
    shard(tmp_path / "a.tar", range(2), **{"tokens.npy": lambda i: b"PK\x03\x04damaged"})
    with pytest.raises(ValueError, match="tokens.npy of record '0000' .*not an array of real numbers"):
        Shards(*[str(tmp_path / "a.tar")] * 2, token_channels=2).training()
