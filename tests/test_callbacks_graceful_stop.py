"""Graceful stops: real signals in the middle of an accumulated step, in validation, twice, and in a thread."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from callbacks import GracefulStop, RunCheckpoint
from callbacks.checkpoint import newest_checkpoint
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


class Signal(pl.Callback):
    """Sends a signal to this process at the start of a micro-step or validation; records later events."""

    def __init__(self, number: int, batch: int | None = None, *, times: int = 1, validation: int = 0) -> None:
        self.number, self.batch, self.times, self.validation = number, batch, times, validation
        self.micro_steps, self.validations = 0, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.micro_steps == self.batch:
            self.send()
        self.micro_steps += 1

    def on_validation_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validations += 1
        if self.validations == self.validation:
            self.send()

    def send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


def fit(folder: Path, sender: Signal, **options: Any) -> pl.Trainer:
    chosen: dict[str, Any] = {"accumulate_grad_batches": 2, "steps": 20, "limit_val_batches": 1.0} | options
    trainer = tiny_trainer(folder, GracefulStop(), RunCheckpoint(100), sender, **{"val_check_interval": 8} | chosen)
    module = tiny_module(average=None, evaluations={"plain": evaluation()})
    trainer.fit(module, datamodule=TinyImages())
    return trainer


@pytest.fixture(autouse=True)
def handlers_come_back() -> Any:
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
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


def test_signal_in_validation_takes_effect_at_the_next_step(tmp_path: Path) -> None:
    sender = Signal(signal.SIGTERM, validation=1)
    trainer = fit(tmp_path, sender)
    assert trainer.global_step == 5 and sender.validations == 1
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000000005.ckpt"


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
