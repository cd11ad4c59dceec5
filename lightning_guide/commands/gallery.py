"""The command gallery: the same seeds under many guidances, in one image with the cost of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from lightning_guide.commands.guidance_files import build_guidances, check_guidances, read_guidances
from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import SampleIndices
from lightning_guide.evaluation.sampling_loop import build_condition, prompts_of
from lightning_guide.runs.models import RunModels
from lightning_guide.runs.run import Run
from lightning_guide.utils.files import atomic, make_folder, read_yaml
from lightning_guide.utils.needs import check_writable

__all__ = ["applicable_guidances", "gallery"]


def gallery(
    run: str,
    methods: list[str],
    *,
    out: str | None = None,
    count: int = 12,
    labels: Literal["balanced", "random"] | int = "balanced",
    seed: int = 0,
) -> None:
    """Draw the same seeds under every guidance of `methods` that fits the model of `run`, in one image.

    Guidances that do not fit are printed with the reason and left out.

    Args:
        run: folder of a finished run.
        methods: files such as configs/guidance/pag.yaml, or folders of them.
        out: folder of gallery.png, metrics.json, gallery.yaml (the settings as a config) and TensorBoard's files;
            default RUN/gallery/NAME, NAME from the first of `methods`, with a number if a gallery of other settings has
            that name. With another folder the run is only read.
        count: samples of each method.
        labels: "balanced", "random", or one class for all samples.
        seed: of the samples.

    Raises:
        ValueError: if the run has no config or the model no such label, a file holds no guidances, two guidances share
            a name, or none fits.
    """
    SampleIndices(count, 0, labels="balanced", seed=seed)  # refuses count and seed before the run is opened
    opened = Run(run)
    check_writable(out or opened.folder / "gallery", "gallery")
    settings = opened.config["model"].get("init_args") or {}
    first, evaluation = next(iter((settings.get("evaluations") or {"unguided": {}}).items()))
    main = opened.model()
    if not main.token_channels:
        SampleIndices(count, evaluation.get("num_classes") or main.num_classes, labels=labels, seed=seed)
    guidances = applicable_guidances(read_guidances(methods), opened, methods=methods)
    drawn: dict[str, Any] = {"num_samples": count, "batch_size": count, "labels": labels, "seed": seed, "metrics": {}}
    model: dict[str, Any] = {"evaluations": {first: evaluation | drawn}, "guidances": guidances}
    folder = make_folder(out or _own_folder(opened.folder / "gallery" / Path(methods[0]).stem, model))
    callbacks = [
        {"class_path": "Gallery", "init_args": {"count": count, "folder": str(folder)}},
        {"class_path": "MetricsReport", "init_args": {"folder": str(folder)}},
    ]
    board = {"save_dir": str(folder), "name": "tensorboard", "default_hp_metric": False}
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": board}
    shown = {"callbacks": [{"class_path": "NamedProgress"}, *callbacks], "enable_progress_bar": True}
    opened.test(model=model, trainer={**shown, "logger": logger})
    written = {"trainer": {"callbacks": callbacks, "default_root_dir": run}, "model": {"init_args": model}}
    with atomic(folder / "gallery.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    files = {"image": "gallery.png", "costs": "metrics.json", "config": "gallery.yaml"}
    print("gallery has ended; " + "; ".join(f"{what} {folder / name}" for what, name in files.items()))


def _own_folder(place: Path, model: dict[str, Any]) -> Path:
    """Return the first of the folders `place`, `place`-2, ... that holds no gallery of other settings than `model`."""
    plain = yaml.safe_load(yaml.safe_dump(model))
    for number in itertools.count(1):
        folder = place if number == 1 else place.with_name(f"{place.name}-{number}")
        settings = folder / "gallery.yaml"
        if not settings.is_file() or read_yaml(settings)["model"]["init_args"] == plain:
            break
    return folder


def applicable_guidances(
    guidances: dict[str, dict[str, Any]], run: Run, *, methods: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Those of `guidances` that can be built and can guide the finished model of `run`; print the others with why.

    The files `methods` they come from are named in errors.

    Raises:
        ValueError: if there is none, or one names a class or an argument that does not exist.
    """
    from lightning_guide.runs.session import open_data  # Lightning takes seconds to import

    check_guidances(guidances, methods)
    kept, main, data = {}, run.model(), open_data(run.config)
    prompts = prompts_of(data, main)
    for name, guidance in guidances.items():
        try:
            (built,) = build_guidances({name: guidance}).values()
            models = RunModels(main, run=run.folder, device=torch.device("cpu"), prompts=prompts)
            _evaluate(built.resolve(models), data)
        except ValueError as reason:
            print(f"left out: {name} ({reason})")
        else:
            kept[name] = guidance
    if not kept:
        raise ValueError(f"none of the guidances {', '.join(guidances)} fits the model of {run.folder}")
    return kept


@torch.no_grad()
def _evaluate(guidance: Denoiser, data: DataInterface) -> None:
    """Call `guidance` once on a sample of zeros under label or prompt 0, for errors that a method finds only then.

    Raises:
        ValueError: by the method.
    """
    condition = build_condition(guidance, torch.zeros(1, dtype=torch.long), data)
    guidance(torch.zeros(1, *guidance.data_shape), torch.tensor(1.0), condition)
