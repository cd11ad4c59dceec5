"""Low-rank additions written as files of diffusers and peft."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_guide.pretrained.diffusers_network import DiffusersNetwork
from lightning_guide.pretrained.lora import FILES, Addition
from lightning_guide.utils.files import atomic

__all__ = ["part_of", "pipeline_of", "write_lora"]

_PIPELINES = {"SD3Transformer2DModel": "StableDiffusion3Pipeline", "FluxTransformer2DModel": "FluxPipeline"}


def part_of(network: DiffusersNetwork) -> str:
    """Return what pipelines call the network: "unet" or "transformer"."""
    return "unet" if network.architecture.startswith("UNet") else "transformer"


def pipeline_of(network: DiffusersNetwork) -> str | None:
    """Return the pipeline whose LoRA files have names for this network; None if there is none."""
    if network.architecture == "UNet2DConditionModel":
        return "StableDiffusionXLPipeline" if network.family.vector else "StableDiffusionPipeline"
    return _PIPELINES.get(network.architecture)


def write_lora(
    folder: Path,
    additions: Mapping[str, Addition],
    network: DiffusersNetwork,
    *,
    form: Literal["diffusers", "peft"],
    base: str,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write `additions`, by the names of modules in the network of diffusers, and return the file.

    diffusers: `pytorch_lora_weights.safetensors`, for `load_lora_weights`, with rank and alpha in its metadata. peft:
    `adapter_model.safetensors` and `adapter_config.json`, for `PeftModel.from_pretrained`. `base` names the model that
    the additions are to, for readers.
    """
    ranks = {name: len(each.down) for name, each in additions.items()}
    alphas = {name: each.factor * ranks[name] for name, each in additions.items()}
    (rank, alpha), _ = Counter(zip(ranks.values(), alphas.values(), strict=True)).most_common(1)[0]
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(additions),
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
    }
    prefix = f"{part_of(network)}." if form == "diffusers" else "base_model.model."
    tensors: dict[str, Tensor] = {}
    for name, each in additions.items():
        up = each.up.reshape(*each.up.shape, *[1] * (each.down.ndim - 2))
        for letter, factor in (("A", each.down), ("B", up)):
            tensors[f"{prefix}{name}.lora_{letter}.weight"] = factor.detach().to("cpu", dtype).contiguous().clone()
    metadata = {"format": "pt", "base": base}
    if form == "diffusers":
        named = {f"{prefix}{key}": value for key, value in settings.items()}
        metadata["lora_adapter_metadata"] = json.dumps(named, indent=2, sort_keys=True)
    else:
        settings |= {"peft_type": "LORA", "base_model_name_or_path": base, "bias": "none", "inference_mode": True}
        with atomic(folder / "adapter_config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    path = folder / FILES[0 if form == "diffusers" else 1]
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path
