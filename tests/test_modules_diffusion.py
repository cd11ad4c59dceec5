"""Diffusion module: clock, draws, independence of validation and global state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from callbacks import EarlySnapshots, PostHocEMA, RunCheckpoint
from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.training.losses import EDMLoss, LossTerms
from tests import runs
from tests.runs import TinyImages, TinyNetwork, assert_same, evaluation, tiny_module, tiny_trainer


class Draws(EDMLoss):
    """Records labels after dropout, noise levels, noise and errors of each training step."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__()
        self.seen: list[tuple[Tensor | None, Tensor, Tensor]] = []
        self.errors: list[Tensor] = []

    def at(
        self, denoiser: Denoiser, clean: Tensor, condition: Tensor | None, sigma: Tensor, noise: Tensor
    ) -> LossTerms:
        terms = super().at(denoiser, clean, condition, sigma, noise)
        if terms.objective.requires_grad:
            self.seen.append((condition, sigma, noise))
            self.errors.append(terms.error.detach())
        return terms


AUTO = Autoguidance(Snapshot("1/2", 0.05), 2.0)


def weights(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def fit(
    folder: Path, *callbacks: pl.Callback, module: DiffusionModule | None = None, **options: Any
) -> DiffusionModule:
    """Train `module`."""
    module = module or tiny_module(average=None)
    tiny_trainer(folder, *callbacks, **options).fit(module, datamodule=TinyImages())
    return module


# --- the clock -----------------------------------------------------------------------------------------


class Clock(pl.Callback):
    """Records images_seen at the start and the end of each micro-step."""

    def __init__(self) -> None:
        self.begin: list[int] = []
        self.end: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.begin.append(module.images_seen)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.end.append(module.images_seen)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_images_are_counted_at_optimizer_steps(tmp_path: Path, accumulate: int) -> None:
    clock = Clock()
    module = fit(tmp_path, clock, steps=3, accumulate_grad_batches=accumulate)
    per_step = 4 * accumulate
    assert clock.begin == [per_step * (k // accumulate) for k in range(3 * accumulate)]
    assert clock.end == [per_step * ((k + 1) // accumulate) for k in range(3 * accumulate)]
    assert module.images_seen == module.planned_images == 3 * per_step


def test_plan_is_that_of_the_first_start(tmp_path: Path) -> None:
    def fit_for(steps: int) -> DiffusionModule:
        trainer = tiny_trainer(tmp_path, RunCheckpoint(2), steps=steps)
        module = tiny_module(average=None)
        newest = runs.newest_checkpoint(tmp_path)
        trainer.fit(module, datamodule=TinyImages(), ckpt_path=newest, weights_only=True)
        return module

    assert fit_for(2).planned_images == 8
    longer = fit_for(4)
    assert (longer.planned_images, longer.images_seen) == (8, 16)


def test_run_without_end_has_no_plan(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    trainer = tiny_trainer(tmp_path, PostHocEMA(8), Stop(), steps=-1)
    module = tiny_module(average=None)
    trainer.fit(module, datamodule=TinyImages())
    assert module.planned_images is None and module.images_seen == 16
    assert all(snapshot["planned_images"] is None for snapshot in runs.snapshots(tmp_path).values())


def test_trial_writes_no_files(tmp_path: Path) -> None:
    module = tiny_module(average=0.05, evaluations={"plain": evaluation(), "auto": evaluation(AUTO)})
    fit(tmp_path, PostHocEMA(4), RunCheckpoint(1), module=module, fast_dev_run=2, limit_val_batches=1.0)
    assert set(module.evaluations.results) == {"plain"} and set(module.evaluations.skipped) == {"auto"}
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "snapshots").exists()


# --- draws ---------------------------------------------------------------------------------------------


def drawn(folder: Path, *, disturb: bool = False, **options: Any) -> list[Any]:
    class Disturb(pl.Callback):
        """Advances the global random state in every hook."""

        def on_train_batch_start(self, *args: Any) -> None:
            torch.manual_seed(len(loss.seen) + 1000)
            torch.randn(3)

        on_train_batch_end = on_before_optimizer_step = on_after_backward = on_train_batch_start

    loss = Draws()
    torch.manual_seed(1 if disturb else 2)
    module = tiny_module(loss=loss, average=None, **options)
    fit(folder, *[Disturb()] * disturb, module=module, steps=3, accumulate_grad_batches=2)
    return [loss.seen, weights(module)]


def test_draws_depend_only_on_seed_and_images(tmp_path: Path) -> None:
    reference = drawn(tmp_path)
    assert_same(drawn(tmp_path, disturb=True), reference)
    other = drawn(tmp_path, seed=1)
    for (_, sigma, noise), (_, other_sigma, other_noise) in zip(reference[0], other[0], strict=True):
        assert not torch.equal(sigma, other_sigma) and not torch.equal(noise, other_noise)
    for name in (1, 2):  # micro-steps of one optimizer step differ as well
        flat = torch.stack([seen[name].flatten() for seen in reference[0]])
        assert len(flat.unique(dim=0)) == 6


def test_labels_are_dropped_with_their_probability(tmp_path: Path) -> None:
    for share in (0.0, 0.3):
        loss = Draws()
        module = tiny_module(loss=loss, average=None, label_dropout=share)
        data = TinyImages(batch_size=500)
        tiny_trainer(tmp_path, steps=4).fit(module, datamodule=data)
        labels = torch.cat([condition for condition, _, _ in loss.seen if condition is not None])
        dropped = float((labels == -1).double().mean())
        assert abs(dropped - share) <= 4 * (share * (1 - share) / 2000) ** 0.5
        visits = torch.cat([data.visits()[range(k, k + 500)].condition for k in range(0, 2000, 500)])
        assert torch.equal(labels[labels >= 0], visits[labels >= 0])


@pytest.mark.parametrize(("classes", "share"), [(3, 1.0), (3, -0.1), (0, 0.1)])
def test_invalid_label_dropout_is_rejected(classes: int, share: float) -> None:
    with pytest.raises(ValueError, match=r"label_dropout must be in \[0, 1\)|needs a model with labels"):
        tiny_module(TinyNetwork(num_classes=classes), label_dropout=share)


# --- validation changes nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("average", [None, 0.05])
@pytest.mark.parametrize("interval", [2, 3])  # 3: in the middle of accumulated steps
def test_training_does_not_depend_on_validation(tmp_path: Path, average: float | None, interval: int) -> None:
    def run(folder: Path, **options: Any) -> Any:
        loops = {"plain": evaluation(), "auto": evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), labels="random")}
        module = tiny_module(average=average, evaluations=loops)
        averages = PostHocEMA(8)
        fit(folder, averages, EarlySnapshots(["1/2"]), module=module, steps=6, accumulate_grad_batches=2, **options)
        assert module.training and module.denoiser.training
        assert bool(module.evaluations.results) == bool(options)
        return weights(module), averages.live(0.05).state_dict(), runs.snapshots(folder)

    without = run(tmp_path / "without")
    assert_same(run(tmp_path / "with", limit_val_batches=1.0, val_check_interval=interval), without)


def test_sanity_check_before_training_changes_nothing(tmp_path: Path) -> None:
    def run(**options: Any) -> dict[str, Tensor]:
        loops = {"plain": evaluation(), "auto": evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0))}
        module = tiny_module(average=0.05, evaluations=loops)
        return weights(fit(tmp_path, PostHocEMA(8), module=module, steps=3, limit_val_batches=1.0, **options))

    assert_same(run(num_sanity_val_steps=2), run())


# --- logs ----------------------------------------------------------------------------------------------


def test_gradients_can_be_enabled_in_every_loop(tmp_path: Path) -> None:
    class TakesGradients(TinyImages):
        """Computes a gradient whenever a sample is decoded."""

        count = 0

        def decode(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                y = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(y.square().sum(), y)
            assert torch.equal(slope, 2 * x)
            TakesGradients.count += 1
            return super().decode(x)

    module = tiny_module(average=0.05, evaluations={"plain": evaluation()}, prediction=evaluation())
    trainer = tiny_trainer(tmp_path, PostHocEMA(4), steps=2, limit_val_batches=1.0, val_check_interval=2)
    data = TakesGradients()
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    assert TakesGradients.count == 4 * (3 + 1)  # and once before each loop


def test_optimizer_can_be_configured(tmp_path: Path) -> None:
    module = tiny_module(average=None, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    with pytest.warns(UserWarning, match="lr=1 of model.optimizer has no effect: model.learning_rate sets"):
        fit(tmp_path, module=module, steps=1)
    assert isinstance(module.optimizers(use_pl_optimizer=False), torch.optim.SGD)
    default = tiny_module(average=None).configure_optimizers()
    assert isinstance(default, torch.optim.Adam) and default.param_groups[0]["betas"] == (0.9, 0.99)


def test_data_without_labels(tmp_path: Path) -> None:
    module = tiny_module(TinyNetwork(num_classes=0), average=None, evaluations={"plain": evaluation()})
    trainer = tiny_trainer(tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=1)
    trainer.fit(module, datamodule=TinyImages(classes=0))
    batches = trainer.predict(module, datamodule=TinyImages(classes=0))
    assert batches is not None and set(torch.cat([drawn.condition for drawn in batches]).tolist()) == {-1}
    assert isinstance(TinyImages(classes=0).visits()[range(4)], Batch)


def test_module_without_a_loss_is_evaluated_and_not_trained(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, limit_val_batches=1.0)
    module = tiny_module(loss=None, average=None, evaluations={"plain": evaluation()})
    trainer.validate(module, datamodule=TinyImages(), verbose=False)
    assert module.evaluations.results["plain"]["nfe"] > 0
    with pytest.raises(ValueError, match=r"fit needs a training loss \(model\.loss\)"):
        fit(tmp_path, module=module)


def test_adams_epsilon_is_that_of_a_loss_summed_over_an_example() -> None:
    module = tiny_module(average=None)
    [group] = module.configure_optimizers().param_groups
    assert group["eps"] == pytest.approx(1e-8 / math.prod(module.denoiser.data_shape))


def test_steps_are_those_of_the_summed_loss_with_the_published_epsilon() -> None:
    """The mean with eps / n moves the weights like the sum with eps; the mean with eps hardly does."""
    n, steps = 12288, {}
    for name, scale, eps in (("sum", 1.0, 1e-8), ("mean", 1 / n, 1e-8 / n), ("unscaled", 1 / n, 1e-8)):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=0.01, betas=(0.9, 0.99), eps=eps)
        for gradient in (1e-6, -3e-7, 2e-6):
            weight.grad = torch.full_like(weight, gradient * scale)
            optimizer.step()
        steps[name] = float(weight.detach())
    assert steps["mean"] == pytest.approx(steps["sum"], rel=1e-9)
    assert abs(steps["unscaled"]) < 0.1 * abs(steps["sum"])
