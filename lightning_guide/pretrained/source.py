"""Published models as denoisers: `Pretrained("KIND:PLACE")`, the one class path by which configs name them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.origin import Origin
from lightning_guide.pretrained.diffusers_network import find_network
from lightning_guide.runs.run import Run

__all__ = ["Pretrained", "is_published", "load", "split_source"]

# kind of a source -> where its reader is, a function of the place and of options that returns a denoiser
READERS: dict[str, str] = {
    "diffusers": "lightning_guide.pretrained.diffusers_folder:read_diffusers",
    "edm2": "lightning_guide.runs.edm2_import:read_edm2",
    "edm": "lightning_guide.pretrained.edm:read_edm",
    "adm": "lightning_guide.pretrained.adm:read_adm",
    "dit": "lightning_guide.pretrained.dit:read_dit",
    "sit": "lightning_guide.pretrained.dit:read_sit",
    "mdm": "lightning_guide.pretrained.mdm:read_mdm",
}


def is_published(source: str | Path) -> bool:
    """Return whether `source` is KIND:PLACE, and not the folder of a run."""
    return str(source).partition(":")[0] in READERS and not Path(source).exists()


def split_source(source: str) -> tuple[str, str]:
    """Return the kind and the place of a source KIND:PLACE.

    Raises:
        ValueError: if there is no such kind.
    """
    kind, colon, place = str(source).partition(":")
    if not colon or kind not in READERS or not place:
        known = ", ".join(f"{each}:PLACE" for each in READERS)
        raise ValueError(f"the source of a published model is {source!r}; expected {known}")
    return kind, place


def Pretrained(  # noqa: N802, the name by which configs know it
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    negative_prompt: str | None = None,
    data_shape: Sequence[int] | None = None,
    constants: Mapping[str, Any] | None = None,
    lora: str | Sequence[str] | None = None,
    lora_scale: float | Sequence[float] = 1.0,
    controlnet: Mapping[str, Any] | None = None,
    offload: bool = False,
) -> Denoiser:
    """Return a published model, trainable, on the CPU; in configs the denoiser of a module, or a guider.

    In configs: `denoiser: {class_path: Pretrained, init_args: {source: "diffusers:runwayml/stable-diffusion-v1-5"}}`.

    Args:
        source: KIND:PLACE; the place is a folder, a file, or a name on the Hugging Face hub. Kinds: docs/pretrained.md.
        revision: branch, tag or commit on the hub.
        variant: files such as "fp16", which some folders hold beside others.
        dtype: type of the weights and precision of the network; D is float32.
        negative_prompt: text that is "no condition" instead of the model's own.
        data_shape: (C, H, W) of x, of motions (features, frames); default: as the model was trained.
        constants: numbers that belong to the model, such as SDXL's sizes; default: as published.
        lora: low-rank additions to the weights: FILE.safetensors, a folder, or OWNER/NAME/FILE on the hub; or several.
        lora_scale: their factor, or a list with one for each.
        controlnet: a ControlNet beside the network: its `source` (folder or OWNER/NAME; default: that of a pipeline
            with one), the file of the control `image`, the same for all samples, and `scale`, the factor of its
            residuals, default 1.
        offload: keep the weights of a network of diffusers on the CPU, and move each layer to the device while it runs:
            slow, in little memory; for sampling, without perturbed networks.

    Raises:
        ValueError: naming what is missing or not supported, or the first weight that is not finite.
    """
    kind, place = split_source(source)
    module, _, name = READERS[kind].partition(":")
    read = getattr(importlib.import_module(module), name)
    given = {
        "revision": revision,
        "variant": variant,
        "dtype": None if dtype == "float32" else dtype,
        "negative_prompt": negative_prompt,
        "data_shape": data_shape,
        "constants": constants,
        "lora": lora,
        "lora_scale": None if lora_scale == 1 else lora_scale,
        "controlnet": controlnet,
    }
    options = {key: value for key, value in given.items() if value is not None}
    for key in options:
        if key not in inspect.signature(read).parameters:
            raise ValueError(f"{source} has the option {key}, which models of the kind {kind} do not have")
    with torch.random.fork_rng(devices=[]):
        denoiser: Denoiser = read(place, **options)
    for name, weight in denoiser.named_parameters():
        if not bool(torch.stack(weight.aminmax()).isfinite().all()):  # one pass without a copy
            raise ValueError(f"the weight {name} of {source} has numbers that are not finite; expected other files")
    denoiser.origin = Origin.of(denoiser, source, **options)
    if offload:
        if (found := find_network(denoiser)) is None:
            raise ValueError(f"{source} has no network of diffusers, which offload is for; expected offload false")
        found[1].offload()
    return denoiser.requires_grad_(True).train()


def load(
    source: str | Path, *, images: int | float | str | None = None, sigma_rel: float | str | None = None, **options: Any
) -> Denoiser:
    """Return a model as a frozen denoiser on the CPU: that of a run folder, or a published one by its KIND:PLACE.

    `load("runs/digits/main", images="1/8")` is `Run(...).model(images=..., sigma_rel=...)`;
    `load("diffusers:FOLDER")` is `Pretrained(...)`, with its `options`.

    Raises:
        ValueError: as these do, or if arguments of one are given for the other.
    """
    if not is_published(source):
        if (Path(source).expanduser() / "model_index.json").is_file():
            raise ValueError(f"{source} is a folder of diffusers, and no run; expected diffusers:{source}")
        if ":" in str(source) and not Path(source).expanduser().exists():
            split_source(str(source))
        if options:
            raise ValueError(f"{source} is a run, which has no {next(iter(options))}; expected images and sigma_rel")
        return Run(source).model(images=images, sigma_rel=sigma_rel)
    if images is not None or sigma_rel is not None:
        raise ValueError(f"{source} is a published model, which has no images and sigma_rel; those are of runs")
    return Pretrained(str(source), **options).eval().requires_grad_(False)
