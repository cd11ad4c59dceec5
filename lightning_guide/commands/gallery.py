"""The gallery as a command: the same seeds under many guidances, in one picture with what each costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.denoiser import Denoiser
from lightning_guide.runs.models import RunModels
from lightning_guide.runs.run import finished_model

__all__ = ["applicable_guidances", "gallery_config"]


def gallery_config(
    run: str,
    methods: list[str],
    *,
    out: str | None = None,
    count: int = 12,
    labels: Literal["balanced", "random"] | int = "balanced",
    seed: int = 0,
) -> list[Path]:
    """The same seeds under every guidance of `methods` that fits the model of `run`, in one picture.

    Those that do not fit are named with the reason on the terminal and left out.

    Args:
        run: folder of a finished run.
        methods: files such as configs/guidance/pag.yaml, or folders of them.
        out: folder of gallery.png, metrics.json and this config; default RUN/gallery.
        count: samples of each method.
        labels: "balanced", "random", or one class for all samples.
        seed: of the samples.

    Returns:
        The configs that draw it when they are run by `lightning-guide test`.

    Raises:
        ValueError: if the run has no config, a file holds no guidances, two guidances share a name, or none fits.
    """
    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{config} does not exist; expected the folder of a run that `lightning-guide fit` has made")
    settings: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]
    guidances = applicable_guidances(read_guidances(methods), run, settings)
    first, evaluation = next(iter((settings.get("evaluations") or {"unguided": {}}).items()))
    drawn: dict[str, Any] = {"num_samples": count, "batch_size": count, "labels": labels, "seed": seed, "metrics": {}}
    folder = Path(out) if out is not None else Path(run) / "gallery"
    callbacks = [
        {"class_path": "callbacks.Gallery", "init_args": {"count": count, "folder": str(folder)}},
        {"class_path": "callbacks.MetricsReport", "init_args": {"folder": str(folder)}},
    ]
    written = folder / "gallery.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"evaluations": {first: evaluation | drawn}, "guidances": guidances}
    trainer = {"callbacks": callbacks, "default_root_dir": str(run)}
    written.write_text(yaml.safe_dump({"trainer": trainer, "model": {"init_args": arguments}}, sort_keys=False))
    return [config, written]


def applicable_guidances(
    guidances: dict[str, dict[str, Any]], run: str, settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Those that the finished model of `run` can be guided by; the others are named with the reason on the terminal.

    Raises:
        ValueError: if there is none.
    """
    main = finished_model(run, settings.get("images"), settings.get("average") or 0.05)
    models = RunModels(main, run=run, device=torch.device("cpu"))
    kept = {}
    for name, guidance in build_guidances(guidances).items():
        try:
            _evaluate(guidance.resolve(models))
        except ValueError as reason:
            print(f"left out: {name} ({reason})")
        else:
            kept[name] = guidances[name]
    if not kept:
        raise ValueError(f"none of the guidances {', '.join(guidances)} fits the model of {run}")
    return kept


@torch.no_grad()
def _evaluate(guidance: Denoiser) -> None:
    """Calls `guidance` once, on one sample of zeros, for what a method finds wrong with the data only then.

    Raises:
        ValueError: by the method.
    """
    condition = torch.zeros(1, dtype=torch.long) if guidance.num_classes else None
    condition = torch.ones(1, 1, guidance.token_channels) if guidance.token_channels else condition
    guidance(torch.zeros(1, *guidance.data_shape), torch.tensor(1.0), condition)
