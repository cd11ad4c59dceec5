"""Requirements of guided evaluations in real runs: guiders, data and labels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import EarlySnapshots, PostHocEMA
from datamodules.examples import TensorExamples
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance, Guided, Main, Snapshot, Unconditional
from lightning_guide.networks import EDM2UNet
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.needs import MissingNeedsError
from tests.evaluated import Log, evaluate, finished_run
from tests.runs import TinyImages, TinyNetwork, evaluation, tiny_module, tiny_trainer

AUTO = Autoguidance(Snapshot("1/2", 0.1), 2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "main")


def test_evaluation_is_skipped_until_its_guider_is_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    module = tiny_module(average=0.05, evaluations={"plain": evaluation(), "auto": evaluation(AUTO)})
    callbacks = [PostHocEMA(1000), EarlySnapshots(["1/2"], rebuildable=1), log]
    trainer = tiny_trainer(tmp_path, *callbacks, steps=8, limit_val_batches=1.0, val_check_interval=2)
    with caplog.at_level("INFO"):
        trainer.fit(module, datamodule=TinyImages())
    assert [set(results) for results in log.results] == [{"plain"}, *[{"plain", "auto"}] * 3]
    assert [set(skipped) for skipped in log.skipped] == [{"auto"}, set(), set(), set()]
    assert "no snapshot of images=1/2" in log.skipped[0]["auto"]
    assert caplog.text.count("evaluation 'auto' is skipped for now: no snapshot of") == 1
    assert trainer.callback_metrics["auto/nfe"] == 6 and trainer.callback_metrics["plain/nfe"] == 3
    first, rest = log.outputs[:10], log.outputs[10:]
    assert [outputs for number, outputs in first if number == 2] == [None] * 3  # skipped
    assert all(isinstance(outputs, DrawnSamples) == (number > 0) for number, outputs in rest)


@pytest.mark.parametrize(
    ("guider", "early", "refused"),
    [
        (Snapshot("1/2", 0.1), ["1/2"], None),
        (Snapshot("1/2", 0.1), [], "none is planned near images=1/2 of 32 .*; available: images 12, 24, 32 .3 in all"),
        (Snapshot("1/2", 0.28), ["1/2"], "images=16, sigma_rel=0.28 cannot be rebuilt well enough"),
        (Snapshot("1/2", 0.7), ["1/2"], "sigma_rel"),
        (Snapshot(64, 0.1), [], None),  # a longer run may store it; skipped, with a warning
        (Snapshot("1/2", 0.1, run="other"), [], None),  # other runs are checked separately
    ],
)
@pytest.mark.filterwarnings("ignore:.*it will be skipped")  # of images 64
def test_refusal_before_training_of_a_guider_that_will_not_be_stored(
    guider: Snapshot, early: list[str], refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    module = tiny_module(average=0.05, evaluations={"auto": evaluation(Autoguidance(guider, 2.0))})
    stored = [PostHocEMA(10, update_every_steps=3), EarlySnapshots(early, rebuildable=1)]
    if early or refused:
        stored = [PostHocEMA(12), stored[1]]
    trainer = tiny_trainer(tmp_path, *stored, steps=8, limit_val_batches=1.0, val_check_interval=100)
    if refused is not None:
        with pytest.raises(MissingNeedsError, match=f"^evaluation 'auto': .*{refused}"):
            trainer.fit(module, datamodule=TinyImages())
        assert trainer.global_step == 0 and not (tmp_path / "snapshots").exists()
        return
    trainer.fit(module, datamodule=TinyImages())
    planned = sorted(stored[0].times(32, 4))  # type: ignore[attr-defined]
    assert planned == sorted({entry.images for entry in SnapshotStore(tmp_path / "snapshots").entries()})


@pytest.mark.parametrize(
    ("widths", "sigma_rel", "trial", "refused"),
    [
        ([0.05, 0.1], 0.1, False, None),  # two callbacks store in one folder and complement each other
        ([0.05, 0.1], 0.05, False, None),
        ([0.05, 0.1], 0.25, False, "cannot be rebuilt"),
        ([0.05, 0.1], 0.25, True, None),  # a trial stores nothing
        ([0.05], 0.0, False, "raw weights .sigma_rel=0. are not stored; available: images 16, 32"),
        ([], 0.05, False, "no average was stored at or before images=16; there are no snapshots"),
    ],
)
def test_refusal_considers_all_callbacks_that_store(
    widths: list[float], sigma_rel: float, trial: bool, refused: str | None, tmp_path: Path
) -> None:
    guided = {"auto": evaluation(Autoguidance(Snapshot(16, sigma_rel), 2.0))}
    module = tiny_module(average=0.05 if widths else None, evaluations=guided)
    stored = [PostHocEMA(16, sigma_rels=[width]) for width in widths]
    trainer = tiny_trainer(tmp_path, *stored, limit_val_batches=1.0, val_check_interval=100, fast_dev_run=8 * trial)
    with contextlib.nullcontext() if refused is None else pytest.raises(MissingNeedsError, match=refused):
        trainer.fit(module, datamodule=TinyImages())


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_missing_guiders_of_a_finished_run_are_errors(run: Path, verb: str) -> None:
    message = r"images=1/16 \(2 of 32 planned\).*available: images 8, 16, 24, 32 \(4 in all\), sigma_rel 0.05, 0.1"
    with pytest.raises(MissingNeedsError, match=message):
        evaluate(run, {"auto": evaluation(Autoguidance(Snapshot("1/16", 0.1)))}, verb)
    with pytest.raises(MissingNeedsError, match="images=64.*available"):
        evaluate(run, {"auto": evaluation(Autoguidance(Snapshot(64, 0.1)))}, verb)
    with pytest.raises(MissingNeedsError, match="sigma_rel=0.25 cannot be rebuilt well enough"):
        evaluate(run, {"auto": evaluation(Autoguidance(Snapshot("1/4", 0.25)))}, verb)
    with pytest.raises(MissingNeedsError, match="images=1/16"):
        prediction = evaluation(Autoguidance(Snapshot("1/16", 0.1)))
        tiny_trainer(run).predict(tiny_module(prediction=prediction), datamodule=TinyImages())
    with pytest.raises(ValueError, match=f"typo.* has no snapshots: .* runs with snapshots: {run}"):
        evaluate(run, {"auto": evaluation(Autoguidance(Snapshot(run=str(run.parent / "typo"))))}, verb)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((1, 3, 3), 3, r"the guider works on x of shape \(1, 3, 3\), the main model on \(1, 4, 4\)"),
        ((1, 4, 4), 5, "the guider has 5 classes, the main model 3"),
        ((1, 4, 4), 0, None),
    ],
)
def test_guiders_of_other_networks(
    run: Path, tmp_path: Path, shape: tuple[int, ...], classes: int, message: str | None
) -> None:
    network = TinyNetwork(shape, classes)
    data = TinyImages(shape=shape, classes=classes)
    tiny_trainer(tmp_path, PostHocEMA(8), steps=2).fit(tiny_module(network, average=None), datamodule=data)
    guided = {"auto": evaluation(Autoguidance(Snapshot("1/1", 0.05, run=str(tmp_path))))}
    if message is None:  # an unconditional guider of a conditional model
        assert evaluate(run, guided).results[0]["auto"]["nfe"] == 6
    else:
        with pytest.raises(ValueError, match=message):
            evaluate(run, guided)


def test_missing_snapshot_of_another_run_fails_before_training(run: Path, tmp_path: Path) -> None:
    def fit(guider: Snapshot) -> None:
        module = tiny_module(evaluations={"auto": evaluation(Autoguidance(guider))}, average=None)
        tiny_trainer(tmp_path, steps=1).fit(module, datamodule=TinyImages())

    with pytest.raises(MissingNeedsError, match=r"evaluation 'auto': .*images=64.*available: images 8, 16, 24, 32"):
        fit(Snapshot(64, 0.1, run=str(run)))
    with pytest.raises(ValueError, match="evaluation 'auto': .*typo.* has no snapshots"):
        fit(Snapshot(run=str(run.parent / "typo")))
    assert not list(tmp_path.rglob("*.ckpt"))
    fit(Snapshot(32, 0.1, run=str(run)))
    fit(Snapshot(64, 0.1, run=str(tmp_path)))  # this run may still store it


# --- mismatched data, models and labels -----------------------------------------------------------


def test_data_of_another_shape_or_class_count_raise(run: Path, tmp_path: Path) -> None:
    def fit(network: TinyNetwork, **options: Any) -> None:
        trainer = tiny_trainer(tmp_path, steps=1)
        trainer.fit(tiny_module(network, average=None), datamodule=TinyImages(**options))

    with pytest.raises(ValueError, match=r"the data has shape \(1, 3, 4\), the network expects \(1, 4, 4\)"):
        fit(TinyNetwork(), shape=(1, 3, 4))
    with pytest.raises(ValueError, match="the data has 4 classes, the network 3"):
        fit(TinyNetwork(), classes=4)
    with pytest.raises(ValueError, match="the data has 0 classes, the network 3"):
        fit(TinyNetwork(), classes=0)
    fit(TinyNetwork(num_classes=0), classes=3)  # an unconditional network on labeled data

    # a config that fits the data, on a run that does not
    network = TinyNetwork((1, 3, 3))
    with pytest.raises(ValueError, match=r"the data has shape \(1, 3, 3\), the network expects \(1, 4, 4\)"):
        log = Log()
        module = tiny_module(network, evaluations={"plain": evaluation()})
        tiny_trainer(run, log).test(module, datamodule=TinyImages(shape=(1, 3, 3)))


@pytest.mark.parametrize("label", [3, -2])
def test_labels_out_of_range_raise(run: Path, label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is out of range: there are 3 classes"):
        evaluate(run, {"plain": evaluation(labels=label)})


def test_training_label_out_of_range_raises(tmp_path: Path) -> None:
    class Mislabeled(TinyImages):
        def training(self) -> TensorExamples:
            examples = super().training()
            assert examples.labels is not None
            return TensorExamples(examples.x, examples.labels + 1)

    sizes: dict[str, Any] = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attention_resolutions": ()}
    network = EDM2UNet(data_shape=(1, 4, 4), num_classes=3, **sizes)
    with pytest.raises(ValueError, match="class label 3 is out of range; expected 0 to 2"):
        trainer = tiny_trainer(tmp_path, steps=9)
        trainer.fit(tiny_module(network, average=None, label_dropout=0.0), datamodule=Mislabeled())


@pytest.mark.parametrize(
    ("dropout", "guidance", "warned"),
    [
        (0.0, ClassifierFreeGuidance(2.0), True),
        (0.0, Guided([Unconditional(AUTO)], [2.0], positive=Main()), True),
        (0.0, Guided([Unconditional(Snapshot("1/2", 0.1))], [2.0], positive=Main()), True),
        (0.1, ClassifierFreeGuidance(2.0), False),
        (0.0, ClassifierFreeGuidance(2.0, unconditional=Snapshot("1/2", 0.1, run="unconditional")), False),
        (0.0, AUTO, False),
    ],
)
def test_warning_of_dropped_conditions_without_label_dropout(
    dropout: float, guidance: Denoiser, warned: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    module = tiny_module(average=None, label_dropout=dropout, evaluations={"guided": evaluation(guidance)})
    trainer = tiny_trainer(tmp_path, steps=1)
    with contextlib.suppress(ValueError):  # the other run does not exist
        trainer.fit(module, datamodule=TinyImages())
    found = [w for w in recwarn if "'guided': it requires predictions without a condition" in str(w.message)]
    assert len(found) == warned


def test_warning_of_dropped_conditions_in_predict(run: Path, recwarn: pytest.WarningsRecorder) -> None:
    guided = evaluation(ClassifierFreeGuidance(2.0))
    for evaluations, prediction, warned in (({"guided": guided}, None, 0), ({}, guided, 1)):
        recwarn.clear()
        module = tiny_module(average=0.05, label_dropout=0.0, evaluations=evaluations, prediction=prediction)
        tiny_trainer(run).predict(module, datamodule=TinyImages(), return_predictions=False)
        found = [w for w in recwarn if "'prediction': it requires predictions without" in str(w.message)]
        assert len(found) == warned and not [w for w in recwarn if "'guided': it requires" in str(w.message)]


def test_empty_evaluations_and_data_raise(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        evaluate(run, {"plain": evaluation(num_samples=0)})

    class Empty(TinyImages):
        def training(self) -> TensorExamples:
            return TensorExamples(torch.zeros(0, 1, 4, 4, dtype=torch.uint8))

    with pytest.raises(ValueError, match="the dataset is empty; expected at least one element"):
        tiny_trainer(tmp_path, steps=1).fit(tiny_module(average=None), datamodule=Empty())


def test_average_needs_a_callback_that_tracks_it(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=1)
    with pytest.raises(ValueError, match="average=0.05 is to be evaluated, but no callback keeps averages: add"):
        trainer.fit(tiny_module(average=0.05), datamodule=TinyImages())
    trainer = tiny_trainer(tmp_path, PostHocEMA(8), steps=2, limit_val_batches=1.0, val_check_interval=1)
    with pytest.raises(ValueError, match=r"no average with sigma_rel=0.2 is tracked; tracked: \[0.05, 0.1\]"):
        trainer.fit(tiny_module(average=0.2), datamodule=TinyImages())


def test_untracked_average_fails_before_training(tmp_path: Path) -> None:
    """Here the first validation would follow the last step."""
    for callbacks, message in (([], "no callback keeps averages"), ([PostHocEMA(8)], "no average with sigma_rel=0.2")):
        trainer = tiny_trainer(tmp_path, *callbacks, steps=2, limit_val_batches=1.0, val_check_interval=50)
        with pytest.raises(ValueError, match=message):
            trainer.fit(tiny_module(average=0.2), datamodule=TinyImages())
