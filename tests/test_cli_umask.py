"""Every file and folder that the commands write has the mode of the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_guide.cli import main
from tests.processes import Processes
from tests.searches import PIXELS
from tests.test_cli import TINY


def settings(run: Path) -> dict[str, object]:
    """A run whose callbacks write all kinds of files."""
    names = ("MetricsReport", "SampleGrid", "RunReport")
    trainer = TINY["trainer"] | {  # type: ignore[operator]
        "default_root_dir": str(run),
        "limit_val_batches": 2,
        "val_check_interval": 4,
        "callbacks": [
            {"class_path": "PostHocEMA", "init_args": {"every_images": 16}},
            *({"class_path": name} for name in names),
            {"class_path": "SampleWriter", "init_args": {"formats": ["npz", "shards"]}},
        ],
    }
    metrics = {"fd": {"class_path": "FrechetDistance", "init_args": PIXELS | {"cache": str(run.parent / "cache")}}}
    arguments = TINY["model"]["init_args"] | {  # type: ignore[index]
        "evaluations": {"unguided": {"num_samples": 4}},
        "prediction": {"num_samples": 4},
        "metrics": metrics,
    }
    return TINY | {"trainer": trainer, "model": TINY["model"] | {"init_args": arguments}}  # type: ignore[operator]


def write_everything(mask: int, folder: str) -> None:
    """Call the commands under the umask `mask`, in `folder`."""
    run, source = Path(folder, "runs/main"), Path(folder, "images")
    os.umask(mask)
    main(["fit", "-c", f"{folder}/tiny.yaml"])
    for command in ("test", "predict"):
        main([command, str(run)])
    main(["export", str(run), f"{folder}/exported"])
    main(["pull", f"{folder}/exported", f"{folder}/pulled"])
    main(["reconstruct", str(run), "[0.08]", "--max_error", "0.9"])
    main(["neon", str(run), str(run)])
    main(["report", str(run), "--out", f"{folder}/pages/page.html"])
    main(["convert", str(source), f"{folder}/shards"])
    main(["init", f"{folder}/configs"])


@pytest.mark.parametrize("mask", [0o002, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o022, 0o077))])
def test_all_files_have_the_mode_of_the_umask(mask: int, tmp_path: Path, processes: Processes) -> None:
    run, source = tmp_path / "runs/main", tmp_path / "images"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(run), sort_keys=False))
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(source / name / "0.png")
    given = set(tmp_path.rglob("*"))
    processes.call(
        ("tests.test_cli_umask", "write_everything"), tmp_path.with_suffix(".log"), mask=mask, folder=str(tmp_path)
    )
    torch.load(next((run / "checkpoints").iterdir()), weights_only=True)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in sorted(set(tmp_path.rglob("*")) - given)}
    kinds = {path.suffix for path in modes if path.is_file()}
    assert kinds >= {".safetensors", ".ckpt", ".json", ".yaml", ".html", ".png", ".npz", ".tar"}
    wrong = {
        str(path): oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert not wrong
