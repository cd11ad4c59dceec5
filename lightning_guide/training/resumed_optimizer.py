"""Continue training with the optimizer that the config names now: its changed settings are applied, or refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["check_optimizer", "drop_frozen", "optimizer_name", "trained_parameters", "update_optimizer"]


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """Return the class path of an optimizer, stored in checkpoints."""
    cls = type(optimizer)
    return f"{cls.__module__}.{cls.__qualname__}"


def check_optimizer(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
    """Refuse to continue with another class of optimizer than that whose state the checkpoint holds.

    Checkpoints of older versions do not name the class; there the names of the settings must agree.

    Raises:
        ValueError: naming both.
    """
    made, stored = optimizer_name(optimizer), checkpoint.get("optimizer")
    groups = (checkpoint.get("optimizer_states") or [{}])[0].get("param_groups") or []
    others = groups and stored is None and not set(optimizer.defaults) <= set(groups[0])
    if (stored is not None and stored != made) or others:
        before = stored or "another optimizer"
        raise ValueError(
            f"the run was trained with {before}, whose state {made} of this config cannot continue; expected the "
            "optimizer that the run began with, or another trainer.default_root_dir, and "
            "denoiser: lightning_guide.runs.pretrained to start from its weights"
        )


def update_optimizer(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
    """Write the settings of `optimizer`, as configured now, over those in the checkpoint, which would replace them."""
    for state in checkpoint.get("optimizer_states") or []:
        for made, stored in zip(optimizer.param_groups, state["param_groups"], strict=False):
            settings = {key: value for key, value in made.items() if key not in ("params", "lr", "initial_lr")}
            base = stored.get("initial_lr", stored["lr"])
            if made["lr"] != base:  # the schedule's factor stays
                settings |= {"lr": made["lr"] * stored["lr"] / base}
                settings |= {"initial_lr": made["lr"]} if "initial_lr" in stored else {}
            stored.update(settings)
    for schedule in checkpoint.get("lr_schedulers") or []:
        schedule["base_lrs"] = [group["lr"] for group in optimizer.param_groups]


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that an optimizer holds: those that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def drop_frozen(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Take frozen parameters out of the optimizer in a checkpoint of an older version, which held all, in one group."""
    trained = [number for number, parameter in enumerate(module.parameters()) if parameter.requires_grad]
    for state in checkpoint.get("optimizer_states") or []:
        groups = state["param_groups"]
        if len(groups) == 1 and len(groups[0]["params"]) == len(list(module.parameters())) > len(trained):
            kept = {old: new for new, old in enumerate(trained)}
            state["state"] = {kept[old]: each for old, each in state["state"].items() if old in kept}
            groups[0]["params"] = list(kept.values())
