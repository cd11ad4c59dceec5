"""What a run will need is known before its first step, in one list; and a failed evaluation ends itself alone."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from callbacks import EarlySnapshots, MetricsReport, RunCheckpoint, SampleGrid
from lightning_guide.data import Batch
from lightning_guide.evaluation import (
    ClassAccuracy,
    ClassifierFeatures,
    FrechetDistance,
    FrechetInterval,
    PrecisionRecall,
    RawPixels,
    SampleMetric,
)
from lightning_guide.evaluation.reference.statistics import Statistics, write_statistics
from lightning_guide.guidance import Autoguidance, LookAhead, Snapshot
from lightning_guide.guidance.training_free import MPGD
from lightning_guide.modules import ClassifierModule, GradientFineTuning
from lightning_guide.modules.needs import samples_drawn
from lightning_guide.networks import SmallClassifier
from lightning_guide.objectives import ClassLabel, ClassLogProbability, NetworkDistance
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import RunNetwork
from lightning_guide.runs.checkpoints import checkpoint_step, newest_checkpoint
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.losses import EDMLoss, LossTerms
from lightning_guide.utils.needs import MissingNeedsError
from tests.evaluated import Log, evaluate, finished_run
from tests.runs import TinyImages, TinyNetwork, evaluation, tiny_module, tiny_trainer


def fit(folder: Path, *callbacks: pl.Callback, steps: int = 4, **options: Any) -> pl.Trainer:
    """Fit with a validation after every second step."""
    trainer = tiny_trainer(folder, *callbacks, steps=steps, limit_val_batches=1.0, val_check_interval=2)
    ckpt = newest_checkpoint(folder)
    trainer.fit(tiny_module(**{"average": None} | options), datamodule=TinyImages(), ckpt_path=ckpt, weights_only=True)
    return trainer


def refused(folder: Path, *callbacks: pl.Callback, **options: Any) -> list[str]:
    """Return the sentences of a fit that is refused before its first step."""
    with pytest.raises(MissingNeedsError) as caught:
        fit(folder, RunCheckpoint(1), *callbacks, **options)
    assert not list(folder.rglob("step-*.ckpt"))
    return list(caught.value.sentences)


def test_everything_that_is_missing_is_in_one_list(tmp_path: Path) -> None:
    (tmp_path / "run" / "grids").parent.mkdir()
    (tmp_path / "run" / "grids").write_text("a file")
    classifier = ClassifierFeatures(str(tmp_path / "classifier"))
    energy = ClassLabel(RunNetwork(str(tmp_path / "guide")), 0)
    evaluations = {
        "early": evaluation(Autoguidance(Snapshot("1/2", 0.1))),
        "other": evaluation(Autoguidance(Snapshot(8, 0.1, run=str(tmp_path / "teacher")))),
        "both": evaluation(Autoguidance(Autoguidance(Snapshot("1/3", 0.1)), positive=Snapshot(run="nowhere"))),
        "guided": evaluation(MPGD(energy, rate=1.0)),
        "one": evaluation(num_samples=1, metrics={"fd": FrechetDistance(RawPixels(), statistics="absent.npz")}),
    }
    metrics: dict[str, SampleMetric] = {"fd": FrechetDistance(classifier), "agreement": ClassAccuracy(classifier)}
    found = refused(tmp_path / "run", EarlySnapshots(["1/4"]), SampleGrid(), evaluations=evaluations, metrics=metrics)
    expected = [
        "evaluation 'early': none is planned near images=1/2 of 16",
        "evaluation 'other': run .*teacher' has no snapshots",
        "evaluation 'both': none is planned near images=1/3 of 16",
        "evaluation 'both': run 'nowhere' has no snapshots",
        "evaluation 'guided': no network in the run .*guide",
        "evaluations 'early', 'other', 'both', 'guided': no classifier in the run .*classifier",
        "evaluation 'one': FrechetDistance needs at least 2 samples, got 1",
        "evaluation 'one': reference statistics: there is no file absent.npz",
        "EarlySnapshots stores averages of callbacks.PostHocEMA",
        "SampleGrid writes to .*grids, but .*grids is a file; expected a folder",
    ]
    for pattern in expected:
        assert len([sentence for sentence in found if re.match(pattern, sentence)]) == 1, (pattern, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (FrechetDistance(RawPixels()), {"num_samples": 1}, "FrechetDistance needs at least 2 samples, got 1"),
        (FrechetDistance(RawPixels()), {"num_samples": 1, "repetitions": 3}, "at least 2 samples, got 1"),
        (FrechetInterval(RawPixels()), {"num_samples": 19}, "FrechetInterval needs at least 20 samples, got 19"),
        (PrecisionRecall(RawPixels(), k=5), {"num_samples": 5}, "PrecisionRecall needs at least 6 samples, got 5"),
        (PrecisionRecall(RawPixels(), k=40), {"num_samples": 50}, "needs at least 41 real examples, got 40"),
    ],
)
def test_too_few_samples_or_examples(
    metric: SampleMetric, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (found,) = refused(tmp_path, evaluations={"plain": evaluation(**options)}, metrics={"m": metric})
    assert found.startswith("evaluation 'plain': ") and found.endswith(message)


def test_statistics_and_classifiers_of_other_data(tmp_path: Path) -> None:
    path = str(write_statistics(tmp_path / "s.npz", Statistics(torch.zeros(9), torch.eye(9), data_shape=(1, 3, 3))))
    network = SmallClassifier(data_shape=(1, 8, 8), num_classes=10, widths=(8,))
    SnapshotStore(tmp_path / "judge" / "snapshots").save(
        network.state_dict(), images=1, sigma_rel=0.0, recipe=network.recipe
    )
    metrics: dict[str, SampleMetric] = {
        "fd": FrechetDistance(RawPixels(), statistics=path),
        "agreement": ClassAccuracy(ClassifierFeatures(str(tmp_path / "judge"))),
    }
    with pytest.warns(UserWarning, match="does not name its extractor"):
        first, second = refused(tmp_path / "run", evaluations={"plain": evaluation()}, metrics=metrics)
    assert "the reference statistics are those of data of shape (1, 3, 3), the samples have shape (1, 4, 4)" in first
    assert "ClassAccuracy cannot be computed: " in second


def test_missing_references_labels_and_names(tmp_path: Path) -> None:
    distance = NetworkDistance(torch.nn.Identity(), str(tmp_path / "faces.npy"))
    evaluations = {"face": evaluation(MPGD(distance, rate=1.0)), "label": evaluation(labels=7)}
    face, label = refused(tmp_path, evaluations=evaluations)
    assert "evaluation 'face': reference examples: there is no file" in face
    assert "evaluation 'label': label 7 is out of range: there are 3 classes" in label
    for options in ({"evaluations": {1.5: evaluation()}}, {"metrics": {None: FrechetDistance(RawPixels())}}):
        with pytest.raises(ValueError, match="but one is called (1.5|None); expected text"):
            tiny_module(**options)
    with pytest.raises(ValueError, match="guidances have names such as 'guided', but one is called False"):
        tiny_module(guidances={False: Autoguidance(Snapshot())})


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)  # the tests may run as root, who may write anywhere
    assert set(refused(tmp_path, MetricsReport())) == {
        f"RunCheckpoint cannot write to {tmp_path / 'checkpoints'}: Read-only file system",
        f"MetricsReport cannot write to {tmp_path / 'report'}: Read-only file system",
    }


def test_finished_run_lists_what_is_missing_as_well(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    evaluations = {name: evaluation(Autoguidance(Snapshot(name, 0.1))) for name in ("1/7", "1/16")}
    evaluations["plain"] = evaluation(num_samples=1)
    metrics: dict[str, SampleMetric] = {"fd": FrechetDistance(RawPixels())}
    for verb in ("validate", "test"):
        with pytest.raises(MissingNeedsError) as caught:
            evaluate(run, evaluations, verb, metrics=metrics)
        assert len(caught.value.sentences) == 3


def test_batch_limits_count() -> None:
    several = evaluation(num_samples=10, batch_size=4)
    assert [samples_drawn(several, limit, 1) for limit in (1.0, 0.5, 2, 9, 0)] == [10, 4, 8, 10, 0]
    assert [samples_drawn(several, limit, 2) for limit in (1.0, 1)] == [10, 8]
    assert samples_drawn(evaluation(num_samples=10, batch_size=4, repetitions=2), 3, 1) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 2}, "trainer.max_epochs is 2, but training is one endless epoch; set trainer.max_steps"),
        ({"min_epochs": 2}, "trainer.min_epochs is 2"),
        ({"min_steps": 2}, "trainer.min_steps is 2"),
        ({"check_val_every_n_epoch": 2}, "trainer.check_val_every_n_epoch is 2, .* set trainer.val_check_interval"),
        ({"limit_train_batches": 3}, "trainer.limit_train_batches is 3"),
        ({"overfit_batches": 3}, "trainer.overfit_batches is 3"),
        ({"reload_dataloaders_every_n_epochs": 1}, "trainer.reload_dataloaders_every_n_epochs is 1"),
        (
            {"callbacks": pl.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1)},
            "StochasticWeightAveraging has no effect",
        ),
        ({"callbacks": pl.callbacks.GradientAccumulationScheduler({0: 2})}, "GradientAccumulationScheduler has no"),
    ],
)
@pytest.mark.parametrize("classifier", [False, True])
def test_settings_without_meaning_are_refused_by_name(
    options: dict[str, Any], message: str, classifier: bool, tmp_path: Path
) -> None:
    options = dict(options)
    callbacks = [options.pop("callbacks")] if "callbacks" in options else []
    module = (
        ClassifierModule(SmallClassifier(data_shape=(1, 4, 4), num_classes=3, widths=(8,)))
        if classifier
        else tiny_module(average=None)
    )
    trainer = tiny_trainer(tmp_path, *callbacks, steps=2, **options)
    with pytest.raises(MissingNeedsError, match=message) as caught:
        trainer.fit(module, datamodule=TinyImages())
    assert len(caught.value.sentences) == 1 and trainer.global_step == 0


def test_rounds_check_their_objective_and_metrics(tmp_path: Path) -> None:
    objective = ClassLogProbability(str(tmp_path / "judge"), 1)
    sampling = evaluation(LookAhead(), num_samples=1, metrics={"fd": FrechetDistance(RawPixels())})
    loss = EDMLoss()
    module = GradientFineTuning(Preconditioned(TinyNetwork()), loss, objective=objective, sampling=sampling)
    with pytest.raises(MissingNeedsError) as caught:
        tiny_trainer(tmp_path, steps=1).fit(module, datamodule=TinyImages())
    first, second = caught.value.sentences
    assert "no network in the run" in first and "needs at least 2 samples, got 1" in second


# --- failures in spite of that ---------------------------------------------------------------------


class Failing(SampleMetric):
    """A metric that fails in one of its methods, with an error that nobody foresees."""

    def __init__(self, where: str, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.where, self.error = where, error
        self.add_sum("count")

    def missing(self, *args: Any) -> Iterable[str]:  # type: ignore[override]
        return ()

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error("out of order")

    def prepare(self, reference: Iterable[Batch]) -> None:
        self.fail("prepare")

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        self.fail("update")
        self.count += len(x)

    def compute(self) -> dict[str, Tensor]:
        self.fail("compute")
        return {"count": self.count}


@pytest.mark.parametrize("where", ["prepare", "update", "compute"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, torch.OutOfMemoryError, ZeroDivisionError])
def test_failing_evaluation_ends_itself_after_a_checkpoint(where: str, error: type[Exception], tmp_path: Path) -> None:
    log, steps = Log(), []

    class Steps(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            steps.append(newest_checkpoint(tmp_path))

    guided = {"bad": evaluation(metrics={"m": Failing(where, error)}), "good": evaluation()}
    with pytest.warns(UserWarning, match=f"evaluation 'bad' failed: {error.__name__}: .*out of order.*checkpoint"):
        trainer = fit(tmp_path, log, Steps(), RunCheckpoint(100), steps=5, evaluations=guided)
    assert trainer.global_step == 5 and [set(results) for results in log.results] == [{"good"}] * 2
    assert [path and checkpoint_step(path) for path in steps] == [None, None, 2, 2, 4]
    fit(tmp_path, RunCheckpoint(100), steps=7, evaluations={"good": evaluation()})  # continues from the checkpoints


def test_run_continued_from_the_checkpoint_of_a_failure_is_the_same_run(tmp_path: Path) -> None:
    guided = {"bad": evaluation(metrics={"m": Failing("update")})}

    class Killed(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="evaluation 'bad' failed"), pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path / "a", RunCheckpoint(100), Killed(), steps=5, evaluations=guided)
    assert checkpoint_step(newest_checkpoint(tmp_path / "a")) == 2  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="evaluation 'bad' failed"):
        resumed = fit(tmp_path / "a", RunCheckpoint(100), steps=5, evaluations=guided)
        whole = fit(tmp_path / "b", RunCheckpoint(100), steps=5, evaluations=guided)
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True)  # type: ignore[union-attr]
    assert all(torch.equal(*pair) for pair in pairs) and resumed.global_step == whole.global_step == 5


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_command_fails_after_all_other_evaluations_ran(verb: str, tmp_path: Path) -> None:
    run, log = finished_run(tmp_path / "run"), Log()
    evaluations = {"bad": evaluation(metrics={"m": Failing("update")}), "good": evaluation(metrics={"m": Failing("")})}
    module = tiny_module(average=0.05, evaluations=evaluations)
    trainer = tiny_trainer(run, MetricsReport(), log, limit_val_batches=1.0)
    with pytest.raises(ValueError, match="^evaluation 'bad' failed: RuntimeError: out of order$"):
        getattr(trainer, verb)(module, datamodule=TinyImages(), verbose=False)
    assert log.results[0]["good"]["count"] == 5
    assert '"good"' in (run / "report" / "metrics.json").read_text()


def test_prediction_that_fails_is_an_error(tmp_path: Path) -> None:
    class Spoiled(TinyImages):
        drawn = 0

        def decode(self, x: Tensor) -> Tensor:
            self.drawn += len(x)
            if self.drawn > 3:
                raise RuntimeError("out of order")
            return super().decode(x)

    run = finished_run(tmp_path / "run")
    with pytest.raises(ValueError, match="^evaluation 'prediction': RuntimeError: out of order$"):
        tiny_trainer(run).predict(tiny_module(average=0.05, prediction=evaluation()), datamodule=Spoiled())


def test_failing_callback_is_contained_as_well(tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()

    class Spoil(pl.Callback):
        """Puts a folder where the image of the first validation goes."""

        def on_train_start(self, *args: Any) -> None:
            (tmp_path / "grids" / "fit-8-plain.png").mkdir()

    with pytest.warns(UserWarning, match="SampleGrid failed: .*fit-8-plain.png.*; it is left out, a checkpoint"):
        trainer = fit(tmp_path, Spoil(), SampleGrid(), RunCheckpoint(100), evaluations={"plain": evaluation()})
    assert trainer.global_step == 4 and (tmp_path / "grids" / "fit-16-plain.png").is_file()
    assert checkpoint_step(tmp_path / "checkpoints" / "step-000000002.ckpt") == 2


def test_interrupts_are_not_contained(tmp_path: Path) -> None:
    class Interrupted(Failing):
        def fail(self, where: str) -> None:
            if where == self.where:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, evaluations={"plain": evaluation(metrics={"m": Interrupted("update")})})


class FailingLoss(EDMLoss):
    """A loss that can train and not be evaluated."""

    def compare(self, *args: Any, **kwargs: Any) -> LossTerms:
        if not torch.is_grad_enabled():
            raise RuntimeError("out of order")
        return super().compare(*args, **kwargs)


class FailingClassifier(ClassifierModule):
    """A classifier that can train and not be evaluated."""

    def measures(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise RuntimeError("out of order")


def test_failing_heldout_measures_of_a_classifier_end_themselves_after_a_checkpoint(tmp_path: Path) -> None:
    module = FailingClassifier(SmallClassifier((1, 4, 4), num_classes=3, widths=(8,)))
    trainer = tiny_trainer(tmp_path, RunCheckpoint(100), steps=3, limit_val_batches=1.0, val_check_interval=2)
    with pytest.warns(UserWarning, match="held-out measures failed: RuntimeError: out of order; .* checkpoint"):
        trainer.fit(module, datamodule=TinyImages(), weights_only=True)
    assert trainer.global_step == 3 and (tmp_path / "checkpoints/step-000000002.ckpt").is_file()
    assert not [name for name in trainer.logged_metrics if "heldout" in name]


def test_failing_heldout_loss_ends_itself_after_a_checkpoint(tmp_path: Path) -> None:
    log = Log()
    with pytest.warns(UserWarning, match="held-out loss failed: RuntimeError: out of order; .* checkpoint"):
        trainer = fit(tmp_path, log, RunCheckpoint(100), steps=3, loss=FailingLoss(), evaluations={"a": evaluation()})
    assert trainer.global_step == 3 and [set(results) for results in log.results] == [{"a"}]
    assert not [name for name in trainer.logged_metrics if "heldout" in name] and "a/nfe" in trainer.logged_metrics
