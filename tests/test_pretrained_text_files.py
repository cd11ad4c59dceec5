"""Text encoders and tokenizers with files that are missing, cut off or not fetched are refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_guide.pretrained import DiffusersFolder, TextEncoders, encode_prompts
from tests.tiny_text_encoders import write_text_encoders

pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 492265168\n"
SD, SDXL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fetch_nothing(path: Path) -> None:
    path.write_text(POINTER)


def forget_words(path: Path) -> None:
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number for word, number in vocabulary.items() if word.startswith("<|")}
    path.write_text(json.dumps(content))


CASES: list[tuple[str, str, Callable[[Path], object], str]] = [
    (SD, "tokenizer/tokenizer.json", Path.unlink, "/tokenizer has no vocabulary; expected tokenizer.json, or"),
    (SD3, "tokenizer_3/tokenizer.json", Path.unlink, "/tokenizer_3 has no vocabulary; .* or spiece.model in it"),
    (SD, "tokenizer/tokenizer_config.json", Path.unlink, "tokenizer/tokenizer_config.json does not exist"),
    (SD, "tokenizer", shutil.rmtree, "the folder .*/tokenizer does not exist"),
    (SDXL, "tokenizer_2", shutil.rmtree, "the folder .*/tokenizer_2 does not exist"),
    (SD, "tokenizer/tokenizer.json", fetch_nothing, "tokenizer.json is a pointer of Git LFS"),
    (SD, "tokenizer/tokenizer.json", cut, "the tokenizers of .* cannot be loaded"),
    (SD, "tokenizer/tokenizer.json", forget_words, "/tokenizer does not tell the words cat and house apart: .* 2 t"),
    (SD, "text_encoder/model.safetensors", cut, "text_encoder/model.safetensors are truncated or damaged"),
    (SD, "text_encoder/model.safetensors", fetch_nothing, "text_encoder/model.safetensors is a pointer of Git LFS"),
    (SD, "text_encoder/config.json", Path.unlink, "text_encoder/config.json does not exist"),
    (SD, "text_encoder", shutil.rmtree, "the folder .*/text_encoder does not exist"),
    (SD3, "text_encoder_3", shutil.rmtree, "the folder .*/text_encoder_3 does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "damage", "message"), CASES)
def test_damaged_parts_are_refused(
    name: str, file: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = write_text_encoders(tmp_path, name)
    damage(folder / file)
    with pytest.raises(ValueError, match=message):
        encode_prompts(folder, ["a cat"])


def test_a_tokenizer_without_vocabulary_is_refused_before_its_cache_is_read(tmp_path: Path) -> None:
    folder = write_text_encoders(tmp_path, SD)
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no vocabulary"):
        TextEncoders(folder)


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "safetensors are truncated or damaged"),
        (fetch_nothing, "safetensors is a pointer of Git LFS"),
        (Path.unlink, "/{part} holds no diffusion_pytorch_model.safetensors, but no weights"),
    ],
)
def test_networks_and_autoencoders_are_refused_in_the_same_words(
    part: str,
    damage: Callable[[Path], object],
    message: str,
    tiny_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(tiny_pipeline("sd"), tmp_path / "sd")
    damage(folder / part / "diffusion_pytorch_model.safetensors")
    opened = DiffusersFolder(folder)
    with pytest.raises(ValueError, match=message.format(part=part)):
        if part == "unet":
            opened.network(empty=opened.empty())
        else:
            opened.latent_space().vae.network()  # type: ignore[union-attr]
