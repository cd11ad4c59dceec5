"""Graceful stops: real signals in the middle of an accumulated step, in validation, twice, and in a thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

from callbacks import GracefulStop, RunCheckpoint
from lightning_guide.cli import main
from lightning_guide.noise import KarrasGrid
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.samplers import Euler
from tests.runs import TinyImages, assert_same, checkpoint, evaluation, tiny_module, tiny_trainer
from tests.test_cli import TINY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signal(pl.Callback):
    """Sends a signal to this process at the start of a micro-step or validation; records later events."""

    def __init__(self, number: int, batch: int | None = None, *, times: int = 1, validation: int = 0) -> None:
        self.number, self.batch, self.times, self.validation = number, batch, times, validation
        self.micro_steps, self.validations, self.batches = 0, 0, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.micro_steps == self.batch:
            self.send()
        self.micro_steps += 1

    def on_validation_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validations += 1
        if self.validations == self.validation:
            self.send()

    def on_validation_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


def fit(
    folder: Path,
    sender: Signal,
    *,
    every: int = 100,
    evaluations: Any = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    chosen: dict[str, Any] = {"accumulate_grad_batches": 2, "steps": 20, "limit_val_batches": 1.0} | options
    trainer = tiny_trainer(folder, GracefulStop(), RunCheckpoint(every), sender, **{"val_check_interval": 8} | chosen)
    module = tiny_module(average=None, evaluations=evaluations or {"plain": evaluation()})
    trainer.fit(module, datamodule=TinyImages(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture(autouse=True)
def handlers_come_back() -> Any:
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGINT, outside)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("batch", [4, 5])  # start and middle of the third accumulated step
def test_stops_after_the_step_with_its_checkpoint_and_without_validation(
    tmp_path: Path, number: signal.Signals, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    sender = Signal(number, batch)
    with caplog.at_level("INFO"):
        trainer = fit(tmp_path, sender)
    assert sender.micro_steps == 6 and trainer.global_step == 3 and sender.validations == 0
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000000003.ckpt"
    assert f"{number.name} requested a stop: stopping after step 3" in caplog.text
    assert trainer.limit_val_batches == 1.0  # restored


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_in_validation_saves_at_once_and_the_validation_is_repeated(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    sender = Signal(number, validation=1)
    with caplog.at_level("INFO"):
        trainer = fit(tmp_path, sender)
    assert trainer.global_step == 4 and sender.validations == 1 and sender.batches == 0
    assert f"{number.name} requested a stop: stopping after step 4" in caplog.text
    path = newest_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoints" / "step-000000004.ckpt"
    resumed, whole = Signal(0), Signal(0)
    trainer = fit(tmp_path, resumed, ckpt_path=path)
    assert trainer.global_step == 20 and resumed.validations == 5 and resumed.batches == 5 * 7
    fit(tmp_path / "whole", whole)
    assert whole.validations == 5 and whole.batches == 5 * 7
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize("sender", [Signal(signal.SIGTERM, validation=5), Signal(signal.SIGTERM, 39)])
def test_the_last_validation_is_repeated_and_once_only(tmp_path: Path, sender: Signal) -> None:
    """A signal within it, and in the step before it."""
    assert fit(tmp_path, sender).global_step == 20 and sender.batches == 7 * 4
    for batches in (7, 0):  # all of it; nothing is left
        resumed = Signal(0)
        trainer = fit(tmp_path, resumed, ckpt_path=newest_checkpoint(tmp_path))
        assert trainer.global_step == 20 and resumed.batches == batches and resumed.micro_steps == 0
    fit(tmp_path / "whole", Signal(0))
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


def test_a_validation_that_has_ended_before_a_kill_is_not_repeated(tmp_path: Path) -> None:
    class Killed(Signal):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            super().on_train_batch_start(trainer)
            if trainer.global_step == 8:
                raise KeyboardInterrupt

    for sender, validations in ((Killed(0), 2), (Signal(0), 3)):
        found = newest_checkpoint(tmp_path)
        try:
            fit(tmp_path, sender, every=4, ckpt_path=found)
        except (KeyboardInterrupt, SystemExit):
            assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-000000008.ckpt"
        assert sender.validations == validations and sender.batches == 7 * validations
    fit(tmp_path / "whole", Signal(0))
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_signal_within_a_batch_of_samples_does_not_wait_for_its_end(tmp_path: Path, accumulate: int) -> None:
    seconds = [0.0]

    class Slow(Euler):
        def sample(self, *args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            start = time.monotonic()
            try:
                time.sleep(5)
            finally:
                seconds[0] = time.monotonic() - start
            raise AssertionError("the batch was drawn to its end")

    slow = evaluation(sampler=Slow(KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)))
    trainer = fit(tmp_path, Signal(0), evaluations={"slow": slow}, accumulate_grad_batches=accumulate)
    assert seconds[0] < 1
    assert trainer.global_step == 8 // accumulate
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / f"step-{8 // accumulate:09d}.ckpt"


def test_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, Signal(signal.SIGINT, 4, times=2))
    assert newest_checkpoint(tmp_path) is None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored on exit


def test_same_trainer_can_continue_after_a_stop(tmp_path: Path) -> None:
    sender = Signal(signal.SIGTERM, 4)
    trainer = fit(tmp_path, sender)
    trainer.should_stop = False
    assert trainer.lightning_module is not None
    trainer.fit(trainer.lightning_module, datamodule=TinyImages())
    assert trainer.global_step == 20 and sender.validations == 5


def test_does_nothing_outside_of_the_main_thread(tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(fit(tmp_path, Signal(0), steps=2).global_step))
    thread.start()
    thread.join()
    assert steps == [2]


def test_works_with_any_module(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = tiny_trainer(tmp_path, GracefulStop(), Signal(signal.SIGTERM, 3), steps=20)
    trainer.fit(BoringModel())
    assert trainer.global_step == 4


def test_every_steps_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="needs every_steps >= 1, got 0"):
        GracefulStop(every_steps=0)


def test_a_stopped_fit_ends_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that `fit && test`, or make, does not go on with half a training."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    words = ["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        ended = GracefulStop.on_train_batch_end
        patch.setattr(
            GracefulStop,
            "on_train_batch_end",
            lambda self, *arguments: (signal.raise_signal(signal.SIGINT), ended(self, *arguments))[1],
        )
        main(words)
    assert left.value.code == 1 and newest_checkpoint(tmp_path / "run") is not None
    main(words)  # resumes
