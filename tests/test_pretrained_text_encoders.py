"""Texts by the encoders of published pipelines, against the encoders themselves; files, caches and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules import Latents, Prompts
from datamodules.commands.encode import encode
from datamodules.prompts import PromptFile
from lightning_guide.commands.encode_prompts import encode_prompts as command
from lightning_guide.conditioning import token_mask
from lightning_guide.pretrained import CachedPrompts, TextEncoders, encode_prompts
from lightning_guide.pretrained.prompts import half_precision, read_prompts
from tests.test_datamodules_latents import Halves, shard
from tests.tiny_text_encoders import PARTS, write_text_encoders

transformers = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
CAT, DOGS = "a cat", "two dogs"
SHAPES = {
    "StableDiffusionPipeline": (77, 16),
    "StableDiffusionXLPipeline": (78, 32),
    "StableDiffusion3Pipeline": (334, 32),
    "FluxPipeline": (513, 32),
    "PixArtAlphaPipeline": (120, 32),
    "PixArtSigmaPipeline": (300, 32),
    "IFPipeline": (77, 32),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of text encoders for each pipeline."""
    return {name: write_text_encoders(tmp_path_factory.mktemp(name), name) for name in PARTS}


def run(folder: Path, number: int, text: str, *, length: int) -> tuple[Any, Tensor]:
    """Call encoder `number` of a folder on one text by transformers alone: its output, and the mask (L,)."""
    part = "" if number == 0 else f"_{number + 1}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / f"tokenizer{part}")
    ids = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    kind = PARTS[json.loads((folder / "model_index.json").read_text())["_class_name"]][number]
    encoder = getattr(transformers, kind).from_pretrained(folder / f"text_encoder{part}").eval()
    masked = {"attention_mask": ids.attention_mask} if kind.startswith("T5") else {"output_hidden_states": True}
    with torch.no_grad():
        return encoder(ids.input_ids, **masked), ids.attention_mask[0].bool()


@pytest.mark.parametrize("name", PARTS)
def test_shapes_and_the_order_of_prompts(name: str, folders: dict[str, Path]) -> None:
    tokens = encode_prompts(folders[name], [CAT, DOGS, CAT])
    assert tokens.shape == (3, *SHAPES[name]) and tokens.dtype == torch.float32
    assert torch.equal(tokens[0], tokens[2]) and not torch.allclose(tokens[0], tokens[1])
    alone = TextEncoders(folders[name], batch_size=1).encode([DOGS])
    torch.testing.assert_close(alone[0], tokens[1], atol=1e-5, rtol=1e-5)


def test_stable_diffusion_keeps_all_rows(folders: dict[str, Path]) -> None:
    folder = folders["StableDiffusionPipeline"]
    expected = run(folder, 0, CAT, length=77)[0].last_hidden_state
    torch.testing.assert_close(encode_prompts(folder, [CAT]), expected, atol=1e-5, rtol=1e-5)


def test_sdxl_has_two_encoders_side_by_side_under_a_pooled_vector(folders: dict[str, Path]) -> None:
    folder = folders["StableDiffusionXLPipeline"]
    first, second = (run(folder, number, CAT, length=77)[0] for number in (0, 1))
    both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)[0]
    vector = torch.cat([second.text_embeds[0], torch.zeros(16)])
    torch.testing.assert_close(encode_prompts(folder, [CAT])[0], torch.stack([vector, *both]), atol=1e-5, rtol=1e-5)


def test_sd3_has_clip_padded_to_the_width_of_t5(folders: dict[str, Path]) -> None:
    folder = folders["StableDiffusion3Pipeline"]
    first, second = (run(folder, number, CAT, length=77)[0] for number in (0, 1))
    clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)[0]
    vector = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
    tokens = encode_prompts(folder, [CAT])[0]
    torch.testing.assert_close(tokens[:78], torch.cat([vector, clip]), atol=1e-5, rtol=1e-5)
    assert tokens[78:].shape == (256, 32) and bool(token_mask(tokens[78:]).all())


def test_sd3_without_t5_has_rows_of_zeros(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = write_text_encoders(tmp_path, "StableDiffusion3Pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match="has 92 tokens, of which StableDiffusion3Pipeline reads 77"):
        tokens = encode_prompts(folder, ["x" * 90])[0]
    assert token_mask(tokens).tolist() == [True] * 78 + [False] * 256


def test_flux_has_the_vector_of_clip_and_the_tokens_of_t5(folders: dict[str, Path]) -> None:
    folder = folders["FluxPipeline"]
    tokens = encode_prompts(folder, [CAT])[0]
    vector = run(folder, 0, CAT, length=77)[0].pooler_output[0]
    torch.testing.assert_close(tokens[0], torch.cat([vector, torch.zeros(16)]), atol=1e-5, rtol=1e-5)
    assert bool(token_mask(tokens).all())  # padding is attended to


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "PixArtSigmaPipeline"])
def test_padding_of_masked_encoders_is_zeros(name: str, folders: dict[str, Path]) -> None:
    tokens = encode_prompts(folders[name], [CAT])[0]
    output, mask = run(folders[name], 0, CAT, length=len(tokens))
    expected = output.last_hidden_state[0] * mask[:, None]
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert int(token_mask(tokens).sum()) == int(mask.sum()) == 7


def test_if_masks_inside_the_encoder_alone(folders: dict[str, Path]) -> None:
    folder = folders["IFPipeline"]
    expected = run(folder, 0, CAT, length=77)[0].last_hidden_state
    torch.testing.assert_close(encode_prompts(folder, [CAT]), expected, atol=1e-5, rtol=1e-5)


def test_no_condition_is_the_empty_prompt_a_negative_one_or_zeros(folders: dict[str, Path]) -> None:
    for name in ("StableDiffusionPipeline", "FluxPipeline", "IFPipeline"):
        encoders = TextEncoders(folders[name])
        assert torch.equal(encoders.empty(), encoders.encode([""])[0]), name
        assert torch.equal(encoders.empty(DOGS), encoders.encode([DOGS])[0]), name
    sdxl = TextEncoders(folders["StableDiffusionXLPipeline"])
    assert not sdxl.empty().any() and torch.equal(sdxl.empty(""), sdxl.encode([""])[0])


def test_a_variant_is_read_where_an_encoder_has_it(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "sd3"
    shutil.copytree(folders["StableDiffusion3Pipeline"], folder)
    expected = TextEncoders(folder).encode([CAT])
    plain = folder / "text_encoder_3/model.safetensors"
    halves = {name: each.half() for name, each in load_file(plain).items()}
    save_file(halves, plain.with_name("model.fp16.safetensors"), metadata={"format": "pt"})
    plain.unlink()
    with pytest.raises(ValueError, match="text_encoder_3 holds no model.safetensors, but model.fp16.safetensors"):
        TextEncoders(folder).encode([CAT])
    encoders = TextEncoders(folder, variant="fp16")
    found = encoders.encode([CAT])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert not torch.equal(found, expected) and encoders.identity != TextEncoders(folder).identity
    assert torch.equal(encode_prompts(folder, [CAT], variant="fp16"), found)


def test_long_prompts_are_cut_and_said_where(folders: dict[str, Path]) -> None:
    encoders, long = TextEncoders(folders["StableDiffusionPipeline"]), " ".join("z" * 70 + "abcdefgh")
    with pytest.warns(
        UserWarning, match="prompt 1, 'z z z.* has 80 tokens.* reads 77: it is cut after '.*z a b c d e'$"
    ):
        tokens = encoders.encode([CAT, long])
    assert torch.equal(tokens[1], encoders.encode([long[:-6]])[0])


def test_prompts_are_encoded_once_and_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["PixArtAlphaPipeline"]
    prompts = CachedPrompts(TextEncoders(folder), [CAT, DOGS, CAT], folder=tmp_path).encode()
    files = sorted(prompts.folder.glob("*.npy"))
    assert len(files) == 2 and len(prompts) == 3 and prompts.texts == [CAT, DOGS, CAT]
    stored = [np.load(file) for file in files]
    assert {(each.shape, each.dtype) for each in stored} == {((120, 32), np.dtype(np.float16))}
    rows, exact = prompts[torch.tensor([2, 1])], encode_prompts(folder, [CAT, DOGS])
    torch.testing.assert_close(rows, exact, atol=2e-3, rtol=1e-3)
    assert torch.equal(token_mask(rows), token_mask(exact))
    times = [file.stat().st_mtime_ns for file in files]
    other = CachedPrompts(TextEncoders(folder), [DOGS, "new"], folder=tmp_path).encode()
    assert torch.equal(other[torch.tensor([0])], rows[1:]) and len(list(prompts.folder.glob("*"))) == 3
    assert [file.stat().st_mtime_ns for file in files] == times


def test_changed_encoders_are_others(tmp_path: Path) -> None:
    folder = write_text_encoders(tmp_path / "a", "StableDiffusionPipeline")
    before = TextEncoders(folder).identity
    assert TextEncoders(folder).identity == before != TextEncoders(folder, dtype="bfloat16").identity
    write_text_encoders(folder, "StableDiffusionPipeline", seed=1)
    assert TextEncoders(folder).identity != before


def test_command_writes_a_file_for_prompt_file(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text(f"{CAT}\n\n{DOGS}\n", encoding="utf-8")
    out, source = tmp_path / "out.npy", str(folders["StableDiffusionXLPipeline"])
    command(source, str(tmp_path / "prompts.txt"), str(out), batch_size=1, device="cpu")
    assert "2 prompts by StableDiffusionXLPipeline" in capsys.readouterr().out
    found = PromptFile(str(out), 32)
    assert found.texts == [CAT, DOGS] and found.tokens.dtype == np.float16 and isinstance(found.tokens, np.memmap)
    expected = encode_prompts(source, [CAT, DOGS])
    torch.testing.assert_close(found[torch.arange(2)], expected, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"out is .*\.pt; expected a file ending in \.npy"):
        command(source, str(tmp_path / "prompts.txt"), str(tmp_path / "out.pt"))


def test_typed_prompts_are_data(folders: dict[str, Path], tmp_path: Path) -> None:
    source, cache = str(folders["IFPipeline"]), str(tmp_path / "cache")
    data = Prompts([CAT, DOGS], source, cache=cache)
    assert not (tmp_path / "cache").exists()
    data.prepare_data()
    assert data.token_channels == 32 and data.prompt_texts == [CAT, DOGS] and len(data.prompts()) == 2
    (tmp_path / "prompts.txt").write_text(f"{DOGS}\n", encoding="utf-8")
    lines = Prompts(str(tmp_path / "prompts.txt"), source, cache=cache)
    assert torch.equal(lines.prompts()[torch.tensor([0])], data.prompts()[torch.tensor([1])])
    np.save(tmp_path / "prompts.npy", half_precision(encode_prompts(source, [CAT])))
    stored = Prompts(str(tmp_path / "prompts.npy"), source, data_shape=(4, 16, 16))
    assert torch.equal(stored.prompts()[torch.tensor([0])], data.prompts()[torch.tensor([0])])
    assert stored.token_channels == 32 and stored.prompt_texts is None
    assert data.data_shape == (4, 8, 8) and stored.data_shape == (4, 16, 16) and data.space is None


@pytest.mark.filterwarnings("ignore:the latents in")  # random networks of arbitrary scale
def test_captions_of_shards_become_embeddings(folders: dict[str, Path], tmp_path: Path) -> None:
    words = {i: f"{CAT}\n{i}" for i in range(3)}
    shard(tmp_path / "pixels/train-00000.tar", range(3), txt=lambda i: words[i].encode())
    source, out = str(folders["PixArtAlphaPipeline"]), str(tmp_path / "latents")
    encode(str(tmp_path / "pixels/*.tar"), out, vae=Halves(), texts=source, batch_size=2, device="cpu")
    shards, options = f"{out}/train-*.tar", {"mean": [0.0] * 3, "std": [1.0] * 3, "token_channels": 32}
    data = Latents(shards, shards, vae=Halves(), token_length=120, **options)  # type: ignore[arg-type]
    condition = data.training().take(torch.arange(3)).condition
    assert condition is not None
    expected = encode_prompts(source, [f"{CAT} {i}" for i in range(3)])
    torch.testing.assert_close(condition, expected, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="made with other settings: texts was '.*' and is now None"):
        encode(str(tmp_path / "pixels/*.tar"), out, vae=Halves(), batch_size=2, device="cpu")
    shard(tmp_path / "bare/train-00000.tar", range(3), txt=lambda i: words[i].encode() if i < 2 else None)
    with pytest.raises(ValueError, match=r"record '0002' of .* has no caption; expected KEY\.txt in UTF-8"):
        encode(str(tmp_path / "bare/*.tar"), str(tmp_path / "b"), vae=Halves(), texts=source, device="cpu")


def test_each_mistake_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for prompts, message in (
        (str(tmp_path / "none.txt"), "none.txt does not exist; expected a text file"),
        (str(tmp_path / "empty.txt"), "empty.txt holds no text; expected one prompt a line"),
        (str(tmp_path / "binary.txt"), "binary.txt cannot be read .*; expected text in UTF-8"),
        ([], r"the prompts are \[\]; expected one text or more"),
    ):
        with pytest.raises(ValueError, match=message):
            read_prompts(prompts)
    with pytest.raises(ValueError, match="do not fit into half precision"):
        half_precision(torch.full((1, 2, 3), 1e5))
    with pytest.raises(ValueError, match="expected a list of one text or more"):
        encode_prompts(tmp_path, CAT)


def test_each_source_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder ./nowhere does not exist"):
        TextEncoders("./nowhere")
    with pytest.raises(ValueError, match="nobody/nothing is neither a folder nor can it be read from the Hugging Face"):
        TextEncoders("nobody/nothing")
    with pytest.raises(ValueError, match=r"model_index\.json does not exist; expected a folder written by"):
        TextEncoders(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match="is a DDPMPipeline, whose texts are not read; supported: StableDiffusion"):
        TextEncoders(tmp_path)
    folder = write_text_encoders(tmp_path / "sd", "StableDiffusionPipeline")
    weights = folder / "text_encoder/model.safetensors"
    weights.rename(folder / "text_encoder/pytorch_model.bin")
    with pytest.raises(
        ValueError, match="text_encoder holds no model.safetensors, but pytorch_model.bin; pickled weights"
    ):
        encode_prompts(folder, [CAT])


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_text_encoders(tmp_path, "IFPipeline")
    weights = load_file(folder / "text_encoder/model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "text_encoder/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="text_encoder of .* lack encoder.final_layer_norm.weight"):
        encode_prompts(folder, [CAT])
