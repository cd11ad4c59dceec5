"""The command export: a model of a run for other tools, whole, as a LoRA, or as a folder that diffusers opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.optimization.low_rank import LowRank
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.diffusers_network import find_network
from lightning_guide.pretrained.folder_export import write_folder
from lightning_guide.pretrained.lora_files import write_lora
from lightning_guide.runs.hub import export as export_model
from lightning_guide.runs.models import finished_model
from lightning_guide.runs.run import Run
from lightning_guide.utils.needs import check_writable

__all__ = ["export"]


def export(
    run: str,
    folder: str,
    *,
    images: int | float | str | None = None,
    sigma_rel: float = 0.05,
    form: Literal["model", "lora", "peft", "diffusers"] = "model",
    source: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    link: bool = False,
) -> None:
    """Write one average of a run into a folder, for other tools.

    Args:
        run: folder of the run.
        folder: where it goes.
        images: age of the model; default its newest snapshot.
        sigma_rel: width of its average, stored or rebuilt.
        form: model: `model.safetensors` and `config.json`, for `pull` and other code; lora: the low-rank additions as
            `pytorch_lora_weights.safetensors`, for `load_lora_weights` of diffusers; peft: the same for peft;
            diffusers: the published pipeline with the tuned network in it, additions merged.
        source: diffusers: folder of that pipeline, or OWNER/NAME; default: that of the config of the run.
        dtype: type of the weights, of lora, peft and diffusers.
        link: diffusers: link the other parts of the pipeline instead of copying them.

    Raises:
        ValueError: if the run has no such snapshot, the folder exists, or the model has no such form.
        OSError: if a file cannot be written.
    """
    target = Path(folder)
    if form != "diffusers" and (source is not None or link):
        raise ValueError(f"source and link are of the form diffusers; expected none for {form}")
    if form == "model":
        if dtype != "float32":
            raise ValueError(f"the form model has the precision of the run; expected no dtype, got {dtype}")
        export_model(run, folder, images=images, sigma_rel=sigma_rel)
        return
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} already holds files; expected a new folder")
    check_writable(target, "the export")
    model = finished_model(run, images, sigma_rel)
    found = find_network(model)
    if found is None:
        raise ValueError(f"the model of {run} is no network of diffusers, which the form {form} is for; expected model")
    prefix, network = found
    precision: torch.dtype = getattr(torch, dtype)
    if form == "diffusers":
        path = write_folder(network, _pipeline(run, source), target, dtype=precision, link=link)
        print(f"the pipeline with the model of {run}: {path}")
        return
    if not isinstance(model, LowRank):
        raise ValueError(f"the model of {run} has no low-rank additions; expected a LowRank, got {_kind(model)}")
    begin = f"{prefix.removeprefix('denoiser.')}model."
    additions = {name.removeprefix(begin): each for name, each in model.merged_additions().items()}
    target.mkdir(parents=True, exist_ok=True)
    base = next(_sources(Run(run)), str(model.denoiser.origin))
    names: dict[str, Literal["diffusers", "peft"]] = {"lora": "diffusers", "peft": "peft"}
    path = write_lora(target, additions, network, form=names[form], base=base, dtype=precision)
    print(f"{len(additions)} low-rank additions of {run}, to {base}: {path}")


def _pipeline(run: str, source: str | None) -> DiffusersFolder:
    """Return the folder named, or that of the config of the run."""
    if source is not None:
        return DiffusersFolder(source)
    found = next(_sources(Run(run)), None)
    if found is None:
        raise ValueError(f"the config of {run} names no source diffusers:PLACE; expected --source, its pipeline")
    return DiffusersFolder(found)


def _sources(run: Run) -> Iterator[str]:
    """Yield the places of diffusers that the denoiser in the config of a run, or of the run under it, names."""

    def within(value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            return
        source, base = value.get("source"), value.get("run")
        if isinstance(source, str) and source.startswith("diffusers:"):
            yield source.removeprefix("diffusers:")
        if isinstance(base, str) and Path(base).expanduser().is_dir():
            yield from _sources(Run(base))
        for each in value.values():
            yield from within(each)

    if (run.folder / "config.yaml").is_file():
        yield from within(run.settings.get("denoiser"))


def _kind(model: Denoiser) -> str:
    return f"a {type(model).__name__}"
