"""Published low-rank additions: the weights of other libraries, and what is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lightning_guide as lg
from lightning_guide.denoiser import Denoiser

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
RANK, ALPHA = 2, 6.0


@pytest.fixture(scope="module")
def folder(tiny_pipeline: Callable[[str], Path]) -> Path:
    return tiny_pipeline("sd")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))  # of the cache of prompts


def weights(model: Denoiser, name: str) -> Tensor:
    return model.get_parameter(f"network.model.{name}.weight").detach()


def factors(model: Denoiser, name: str) -> tuple[Tensor, Tensor]:
    """U (out, r, ...) and V (r, in, ...), of a convolution with its kernel in V."""
    shape, kernel = weights(model, name).shape, weights(model, name).shape[2:]
    generator = torch.Generator().manual_seed(len(name))
    up = torch.randn(shape[0], RANK, *(1 for _ in kernel), generator=generator)
    return up, torch.randn(RANK, *shape[1:], generator=generator)


def peft_names(pairs: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {f"unet.{name}.lora_B.weight": pair[0] for name, pair in pairs.items()}
    return tensors | {f"unet.{name}.lora_A.weight": pair[1] for name, pair in pairs.items()}


def old_names(pairs: dict[str, Any]) -> dict[str, Tensor]:
    """Names of old versions of diffusers, for attention alone."""
    old = QUERY.replace(".to_q", ".processor.to_q_lora")
    return {f"unet.{old}.up.weight": pairs[QUERY][0], f"unet.{old}.down.weight": pairs[QUERY][1]}


def kohya_names(pairs: dict[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in pairs.items():
        flat = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}
        tensors[f"{flat}.alpha"] = torch.tensor(ALPHA)
    return tensors


SETTINGS = {"unet.lora_alpha": ALPHA, "unet.r": RANK, "unet.target_modules": [QUERY, CONV]}
METADATA = {"lora_adapter_metadata": json.dumps(SETTINGS)}


@pytest.mark.parametrize(
    ("names", "metadata", "alpha"),
    [
        (peft_names, None, RANK),
        (peft_names, METADATA, ALPHA),
        (old_names, None, RANK),
        (kohya_names, None, ALPHA),
    ],
    ids=["peft", "peft with alpha", "old", "kohya"],
)
def test_the_product_is_added_to_the_weights(
    folder: Path, tmp_path: Path, names: Any, metadata: Any, alpha: float
) -> None:
    plain = lg.load(f"diffusers:{folder}")
    pairs = {name: factors(plain, name) for name in ((QUERY,) if names is old_names else (QUERY, CONV))}
    save_file(names(pairs), tmp_path / "lora.safetensors", metadata)
    added = lg.load(f"diffusers:{folder}", lora=str(tmp_path / "lora.safetensors"), lora_scale=0.5)
    assert plain.state_dict().keys() == added.state_dict().keys()
    for name, before in plain.state_dict().items():
        layer = name.removeprefix("network.model.").removesuffix(".weight")
        change = torch.zeros_like(before)
        if layer in pairs:
            up, down = pairs[layer]
            product = torch.einsum("orab,ricd->oicd", up, down) if up.ndim == 4 else up @ down
            change = 0.5 * alpha / RANK * product
        torch.testing.assert_close(added.state_dict()[name], before + change, rtol=1e-5, atol=1e-5)


def test_the_numbers_are_those_of_peft(folder: Path, tmp_path: Path) -> None:
    """The same file by `load_lora_adapter` and `fuse_lora`."""
    pytest.importorskip("peft", reason="needs peft, which is missing")
    model = lg.load(f"diffusers:{folder}")
    save_file(peft_names({name: factors(model, name) for name in (QUERY, CONV)}), tmp_path / "l.safetensors", METADATA)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.load_lora_adapter(tmp_path, weight_name="l.safetensors", prefix="unet")
    unet.fuse_lora(lora_scale=0.7)
    unet.unload_lora()
    added = lg.load(f"diffusers:{folder}", lora=str(tmp_path), lora_scale=0.7)
    for name, weight in unet.state_dict().items():
        torch.testing.assert_close(added.state_dict()[f"network.model.{name}"], weight, rtol=1e-5, atol=1e-5)


def test_files_of_peft_itself_are_read_with_their_alpha(folder: Path, tmp_path: Path) -> None:
    plain = lg.load(f"diffusers:{folder}")
    up, down = factors(plain, QUERY)
    stem = f"base_model.model.{QUERY}"
    tensors = {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    added = lg.load(f"diffusers:{folder}", lora=str(tmp_path))
    expected = weights(plain, QUERY) + ALPHA / RANK * up @ down
    torch.testing.assert_close(weights(added, QUERY), expected)


def test_changes_of_text_encoders_are_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    plain = lg.load(f"diffusers:{folder}")
    tensors = peft_names({QUERY: factors(plain, QUERY)})
    tensors["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 16)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.warns(UserWarning, match="also changes text_encoder, which is left as it is"):
        lg.load(f"diffusers:{folder}", lora=str(tmp_path))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"unet.nowhere.lora_A.weight": torch.zeros(2, 4)}, "changes nowhere, which the UNet2DConditionModel does not"),
        ({f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 16)}, f"holds one factor of {QUERY} alone"),
        (
            {f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 5), f"unet.{QUERY}.lora_B.weight": torch.zeros(16, 2)},
            r"have the shapes \(16, 2\) and \(2, 5\), which do not fit the weight \(16, 16\)",
        ),
        ({f"unet.{QUERY}.hada_w1_a": torch.zeros(2, 16)}, "hada_w1_a, which is no low-rank addition to a weight"),
        ({"text_encoder.a.lora_A.weight": torch.zeros(2, 16)}, "holds no addition to a network, but text_encoder.a"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor], expected: str
) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=expected) as refused:
        lg.load(f"diffusers:{folder}", lora=str(tmp_path))
    assert "\n" not in str(refused.value)


def test_places_without_a_file_are_named(folder: Path, tmp_path: Path) -> None:
    source = f"diffusers:{folder}"
    torch.save({}, tmp_path / "adapter_model.bin")
    for place, expected in (
        ("/nowhere/lora.safetensors", "the LoRA /nowhere/lora.safetensors does not exist"),
        (str(tmp_path), r"holds no safetensors \(pickled files are not read\)"),
        (str(tmp_path / "adapter_model.bin"), "is no safetensors file"),
        ("owner/name", "the LoRA owner/name is neither a folder nor can it be read from the Hugging Face hub"),
    ):
        with pytest.raises(ValueError, match=expected):
            lg.load(source, lora=place)
    with pytest.raises(ValueError, match="lora_scale=0.5 without a lora"):
        lg.load(source, lora_scale=0.5)
    for scale in ("big", [float("nan")]):
        with pytest.raises(ValueError, match="lora_scale is .*; expected a finite number, or a list with one"):
            lg.load(source, lora="nowhere.safetensors", lora_scale=scale)


def test_training_starts_from_names_of_kohya(folder: Path, tmp_path: Path) -> None:
    source = f"diffusers:{folder}"
    save_file(kohya_names({QUERY: factors(lg.load(source), QUERY)}), tmp_path / "lora.safetensors")
    model = lg.LowRank(lg.Pretrained(source), rank=3, lora=str(tmp_path / "lora.safetensors"))
    merged = lg.load(source, lora=str(tmp_path / "lora.safetensors"))
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(1.5)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, sigma), merged(x, sigma), rtol=1e-4, atol=1e-4)
