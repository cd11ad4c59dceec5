"""What a changed optimizer does to a run that is continued: applied, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import RunCheckpoint
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.training.resumed_optimizer import update_optimizer
from tests.runs import TinyImages, tiny_module, tiny_trainer


def fit(folder: Path, steps: int, optimizer: Any = None) -> DiffusionModule:
    """Train or continue to `steps`."""
    module = tiny_module(average=None, optimizer=optimizer)
    newest = newest_checkpoint(folder)
    tiny_trainer(folder, RunCheckpoint(2), steps=steps).fit(
        module, datamodule=TinyImages(), ckpt_path=newest, weights_only=True
    )
    return module


def adam(**settings: Any) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, lr=1e-3, **settings)


def adamw(**settings: Any) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **settings)


def norm(module: DiffusionModule) -> float:
    return float(torch.cat([each.detach().flatten() for each in module.denoiser.parameters()]).norm())


def test_changed_settings_of_the_same_optimizer_are_applied(tmp_path: Path) -> None:
    fit(tmp_path / "run", 2, adamw(weight_decay=0.0))
    before = norm(fit(tmp_path / "run", 3, adamw(weight_decay=0.0)))
    fit(tmp_path / "other", 2, adamw(weight_decay=0.0))
    module = fit(tmp_path / "other", 3, adamw(weight_decay=50.0))
    [group] = module.trainer.optimizers[0].param_groups
    assert group["weight_decay"] == 50.0
    assert norm(module) < before * 0.9


def test_another_class_of_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    with pytest.raises(ValueError, match=r"trained with torch\.optim\.adam\.Adam, whose state torch\.optim\.sgd\.SGD"):
        fit(tmp_path, 4, lambda parameters: torch.optim.SGD(parameters, lr=1e-3))
    with pytest.raises(ValueError, match=r"adam\.Adam, whose state torch\.optim\.adamw\.AdamW of this config"):
        fit(tmp_path, 4, adamw(weight_decay=0.5))
    assert norm(fit(tmp_path, 4)) > 0


def test_default_optimizer_keeps_the_settings_of_the_checkpoint(tmp_path: Path) -> None:
    """A run of an older version had another epsilon, and continues with it."""
    fit(tmp_path, 2, adam(betas=(0.9, 0.99), eps=1e-8))
    [group] = fit(tmp_path, 4).trainer.optimizers[0].param_groups
    assert group["eps"] == 1e-8


def test_a_schedule_keeps_its_factor_of_the_changed_rate() -> None:
    """As in guide networks, whose rates follow a schedule: unchanged settings change no bit."""
    weight = torch.nn.Parameter(torch.zeros(1))
    states = {}
    for rate in (0.3, 0.1):
        optimizer = torch.optim.AdamW([weight], lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 3))
        optimizer.step(), schedule.step()
        states[rate] = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    kept, changed = states[0.1], states[0.3]
    before = kept["optimizer_states"][0]["param_groups"][0]["lr"]
    update_optimizer(torch.optim.AdamW([weight], lr=0.1), kept)
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == before
    update_optimizer(torch.optim.AdamW([weight], lr=0.1), changed)
    [group] = changed["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(before) and group["initial_lr"] == 0.1
    assert changed["lr_schedulers"][0]["base_lrs"] == [0.1]
