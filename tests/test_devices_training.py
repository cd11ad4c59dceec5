"""Training on the emulated device: the CPU's weights, no mixed devices, no wait of the host but in logged steps."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from callbacks import GracefulStop, PostHocEMA
from lightning_guide.conditioning import drop_condition
from lightning_guide.data import Batch
from lightning_guide.ema import update_
from lightning_guide.networks import DDPMpp, EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.augmentation import AugmentedLoss, GeometricAugmentation
from lightning_guide.training.learning_rate import adam
from lightning_guide.training.losses import EDMLoss
from lightning_guide.training.monitor import GradientGuard, HeldoutLoss, NoiseLevelMeans
from scripts.lib.emulated_accelerator import EmulatedStrategy
from scripts.lib.emulated_device import DEVICE, EmulatedDevice, Wait
from tests.devices import LOSSES, NETWORKS, SHAPE, UNET, condition_of, make_network
from tests.runs import TinyImages, tiny_module, tiny_trainer


def step_on(place: torch.device, name: str, device: EmulatedDevice) -> tuple[dict[str, Tensor], list[Wait], list[Wait]]:
    """Gradients and errors of a training step, its waits, and those of a held-out batch."""
    model = make_network(name)
    if name == "DDPM++":
        model = Preconditioned(DDPMpp(SHAPE, num_classes=4, augmentation_channels=9, **UNET))
    model = model.train().requires_grad_(True).to(place)
    augmented = AugmentedLoss(EDMLoss(uncertainty=False), GeometricAugmentation())
    loss = (augmented if name == "DDPM++" else LOSSES[name]()).to(place)
    average = copy.deepcopy(model)
    optimizer = adam(scaled=False, elements=64)([*model.parameters(), *loss.parameters()])
    means, heldout = NoiseLevelMeans([0.2, 1.0]), HeldoutLoss([0.3], seed=0)
    x = torch.randn(3, *model.data_shape, generator=torch.Generator().manual_seed(1)).to(place)
    condition = condition_of(model)
    given = None if condition is None else condition.to(place)
    heldout.reset(place)
    device.forget()
    generator = torch.Generator(place).manual_seed(0)
    if given is not None:
        given = drop_condition(given, torch.rand(3, generator=generator, device=place) < 0.3)
    terms = loss(model, x, given, generator)
    means.update(terms)
    terms.objective.mean().backward()
    GradientGuard(3).check(model, optimizer, 0)
    optimizer.step()
    model.constrain()
    loss.constrain()
    update_(list(average.parameters()), list(model.parameters()), 0.9)
    waits = list(device.waits)
    device.forget()
    heldout.update(loss, model, Batch(x, given), range(3))
    later = list(device.waits)
    found = {key: each.grad.cpu() for key, each in model.named_parameters() if each.grad is not None}
    return found | {"errors": torch.tensor(list(means.report(lambda sums: sums).values()))}, waits, later


@pytest.mark.parametrize("name", NETWORKS)
def test_step_gives_the_gradients_of_the_cpu_without_waits(name: str) -> None:
    with EmulatedDevice() as device:
        expected, _, _ = step_on(torch.device("cpu"), name, device)
        found, waits, later = step_on(DEVICE, name, device)
    largest = max(float(each.abs().max()) for each in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * largest)
    assert not waits and not later


class Steps(pl.Callback):
    """The waits of each training batch."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.found = device, list[list[Wait]]()

    def on_train_batch_start(self, *_: Any) -> None:
        self.device.forget()

    def on_train_batch_end(self, *_: Any) -> None:
        self.found.append(list(self.device.waits))


def fitted(folder: Path, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = EDM2UNet((1, 4, 4), num_classes=3, **UNET | {"channel_mult": [1], "attention_resolutions": []})
    module = tiny_module(network)
    callbacks = [PostHocEMA(1000), GracefulStop(), *options.pop("callbacks", ())]
    trainer = tiny_trainer(folder, *callbacks, steps=5, log_every_n_steps=2, **options)
    trainer.fit(module, datamodule=TinyImages())
    return {name: value.cpu() for name, value in module.denoiser.state_dict().items()}


def test_fit_gives_the_weights_of_the_cpu_and_waits_at_logged_steps_alone(tmp_path: Path) -> None:
    expected = fitted(tmp_path / "cpu")
    with EmulatedDevice() as device:
        steps = Steps(device)
        found = fitted(tmp_path / "device", callbacks=[steps], accelerator="auto", strategy=EmulatedStrategy())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    counts = [Counter(wait.place.split(":")[0] for wait in step) for step in steps.found]
    assert not counts[2] and counts[1] == counts[3], "every second step is logged"
    assert counts[1] == {"lightning_guide/training/monitor.py": 1, "lightning_guide/modules/diffusion.py": 1}
