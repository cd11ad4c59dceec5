"""Training-free guidance from the command line: two processes draw the same samples as one, also in bfloat16."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from lightning_guide.cli import main
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore
from tests.processes import Processes

GUIDE = ("tests.test_cli_training_free", "guide")
LABEL = {
    "class_path": "ClassLabel",
    "init_args": {"classifier": {"class_path": "lightning_guide.pretrained.RunNetwork", "init_args": {"run": "guide"}}},
}
METHODS = {
    "lgd": {
        "class_path": "LossGuidedDiffusion",
        "init_args": {"energy": LABEL, "weight": 10, "draws": 3, "guide_batch": 4},
    },
    "mpgd": {"class_path": "MPGD", "init_args": {"energy": LABEL, "window": {"every": 2}}},
}
TINY: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "limit_val_batches": 0,
        "default_root_dir": "run",
        "logger": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "PostHocEMA", "init_args": {"every_images": 8}}],
    },
    "model": {
        "class_path": "DiffusionModule",
        "init_args": {
            "denoiser": {
                "class_path": "lightning_guide.preconditioning.Preconditioned",
                "init_args": {
                    "network": {
                        "class_path": "EDM2UNet",
                        "init_args": {
                            "data_shape": [1, 8, 8],
                            "model_channels": 16,
                            "channel_mult": [1, 2],
                            "num_blocks": 1,
                            "attention_resolutions": [4],
                        },
                    }
                },
            },
            "loss": {"class_path": "EDMLoss"},
            "evaluations": {
                "plain": {
                    "num_samples": 7,
                    "num_classes": 4,
                    "batch_size": 3,
                    "sampler": {
                        "class_path": "lightning_guide.samplers.Euler",
                        "init_args": {
                            "grid": {
                                "class_path": "lightning_guide.noise.KarrasGrid",
                                "init_args": {"num_steps": 4, "sigma_min": 0.1, "sigma_max": 5.0},
                            }
                        },
                    },
                },
            },
            "guidances": METHODS,
        },
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 8}},
}


class SaveDrawn(pl.Callback):
    """Saves the samples drawn by this process and the network calls of each evaluation as `OUT`-RANK.pt."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.drawn: list[tuple[int, DrawnSamples]] = []

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.drawn.append((dataloader_idx, outputs))

    def on_test_end(self, trainer: pl.Trainer, module: Any) -> None:
        rows = [(loop, int(i), x) for loop, batch in self.drawn for i, x in zip(batch.index, batch.x, strict=True)]
        torch.save(
            {"rows": rows, "nfe": {k: v["nfe"] for k, v in module.evaluations.results.items()}},
            f"{self.out}-{trainer.global_rank}.pt",
        )


def guide(folder: str, words: list[str]) -> None:
    """Run `lightning-guide WORDS` in `folder`, with samples in the denoiser's form in place of the stored form."""
    from datamodules.base_images import ImageData

    ImageData.decode = lambda self, x: x  # type: ignore[method-assign]  # in this process only
    os.chdir(folder)
    sys.argv = ["lightning-guide", *words]
    main()


def drawn(folder: Path, name: str, world: int) -> tuple[dict[int, torch.Tensor], dict[str, float]]:
    """Return the samples of each evaluation in the order of their index, and the network calls per sample."""
    saved = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]
    rows = sorted((loop, index, x) for each in saved for loop, index, x in each["rows"])
    assert all(each["nfe"] == saved[0]["nfe"] for each in saved)
    found = {}
    for loop in range(3):
        own = [(index, x) for at, index, x in rows if at == loop]
        assert [index for index, _ in own] == list(range(7))
        found[loop] = torch.stack([x for _, x in own])
    return found, saved[0]["nfe"]


@pytest.mark.slow
def test_two_processes_and_bfloat16_draw_the_same_samples(processes: Processes, tmp_path: Path) -> None:
    network = SmallClassifier([1, 8, 8], num_classes=4, widths=[8, 16])
    with torch.no_grad():
        network.head.weight.mul_(20)
    store = SnapshotStore(tmp_path / "guide" / "snapshots")
    store.save(network.state_dict(), images=8, sigma_rel=0.0, recipe=network.recipe, planned_images=8)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def call(name: str, world: int, *words: str) -> tuple[dict[int, torch.Tensor], dict[str, float]]:
        callback = ["--trainer.callbacks+=tests.test_cli_training_free.SaveDrawn", f"--trainer.callbacks.out={name}"]
        arguments = ["test", "-c", "run/config.yaml", *callback, *words]
        processes.call_ranks(world, GUIDE, tmp_path / f"{name}.log", folder=str(tmp_path), words=arguments)
        return drawn(tmp_path, name, world)

    processes.call(GUIDE, tmp_path / "fit.log", folder=str(tmp_path), words=["fit", "-c", "tiny.yaml"])
    alone, calls = call("alone", 1)
    gloo = Path("configs/ddp.yaml").resolve()
    both, _ = call(
        "both", 2, "-c", str(gloo), "--trainer.devices", "2", "--trainer.strategy.process_group_backend", "gloo"
    )
    half, _ = call("half", 1, "--trainer.precision", "bf16-mixed")
    assert calls == {"plain": 4, "lgd": 4, "mpgd": 4}
    for loop in range(3):
        torch.testing.assert_close(both[loop], alone[loop], rtol=1e-5, atol=1e-5)
        assert half[loop].dtype == torch.float32 and half[loop].isfinite().all()
        gap = (half[loop] - alone[loop]).abs()
        assert 0 < gap.max() < 0.2 and gap.mean() < 0.02, f"{loop}: {gap.max()}"
        if loop:
            assert (alone[loop] - alone[0]).abs().flatten(1).amax(1).min() > 0.01  # every sample is guided
    assert all(f"\n{name} " in (tmp_path / "alone.log.0").read_text() for name in calls)  # rows of the table
