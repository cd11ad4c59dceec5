"""Results of guided evaluations in real runs: by name, independent of the batch size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import PostHocEMA
from lightning_guide.data import Batch, SampleBatch
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.evaluation import FrechetDistance, KernelDistance, Memorization, RawPixels, SampleMetric
from lightning_guide.evaluation.evaluation import Evaluation, under_guidances
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance, Guidance, Main, ScoreScaling, Snapshot
from tests.evaluated import Log, evaluate, finished_run
from tests.runs import TinyImages, TinyNetwork, evaluation, tiny_module, tiny_trainer

AUTO = Autoguidance(Snapshot("1/2", 0.1), 2.0)


class Mean(SampleMetric):
    """Mean of the samples and how many there were; counts how often real data are read."""

    total: Tensor
    count: Tensor
    prepared = 0

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total")
        self.add_sum("count")

    def prepare(self, reference: Iterable[Batch]) -> None:
        Mean.prepared += sum(len(batch.x) for batch in reference)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        self.total += x.double().mean((1, 2, 3)).sum()
        self.count += len(x)

    def compute(self) -> dict[str, Tensor]:
        return {"mean": self.total / self.count, "samples": self.count}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "main")


def without_time(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {key: v for key, v in values.items() if key != "seconds"} for name, values in results.items()}


def samples(log: Log, loop: int) -> Tensor:
    return torch.cat([outputs.x for number, outputs in log.outputs if number == loop])


def test_results_are_reproducible_for_all_batch_sizes(run: Path) -> None:
    def score(batch: int) -> tuple[dict[str, dict[str, float]], Tensor, Tensor]:
        options: dict[str, Any] = {"num_samples": 13, "batch_size": batch}
        guided = {"plain": evaluation(**options), "auto": evaluation(AUTO, **options)}
        log = evaluate(run, guided, metrics={"fd": FrechetDistance(RawPixels()), "mean": Mean()}, average=0.05)
        return without_time(log.results[0]), samples(log, 0), samples(log, 1)

    reference = score(5)
    assert set(reference[0]) == {"plain", "auto"}
    assert set(reference[0]["auto"]) == {"nfe", "samples", "fd", "mean", "mean_samples"}
    assert reference[0]["auto"]["samples"] == reference[0]["auto"]["mean_samples"] == 13
    again = score(5)
    assert again[0] == reference[0] and torch.equal(again[1], reference[1]) and torch.equal(again[2], reference[2])
    assert not torch.equal(*reference[1:])
    for batch in (1, 13, 64):
        other = score(batch)
        for one, two in zip(reference[1:], other[1:], strict=True):
            assert (one.int() - two.int()).abs().max() <= 1  # of 255, from rounding
        for name, values in reference[0].items():
            assert other[0][name] == pytest.approx(values, rel=1e-3)


def test_noise_is_bitwise_and_samples_to_1e_5_equal_for_all_batch_sizes(run: Path) -> None:
    class Points(TinyImages):
        """Data stored as denoiser inputs, without rounding."""

        def decode(self, x: Tensor) -> Tensor:
            return x

    class NoiseDenoiser(Denoiser):
        """D = x at every level: a sampler returns its noise."""

        data_shape, num_classes, sigma_data = (1, 4, 4), 0, 0.5

        def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return x

    def draw(batch: int) -> list[Tensor]:
        options: dict[str, Any] = {"num_samples": 13, "batch_size": batch}
        loops = {"noise": evaluation(NoiseDenoiser(), **options), "auto": evaluation(AUTO, **options)}
        log = evaluate(run, loops, data=Points(), average=0.05)
        return [samples(log, 0), samples(log, 1)]

    noise, auto = draw(5)
    assert abs(noise.std() / 5 - 1) < 0.2  # sigma_max
    for batch in (1, 4, 13):
        other = draw(batch)
        assert torch.equal(other[0], noise)
        torch.testing.assert_close(other[1], auto, rtol=1e-5, atol=1e-5)


def test_end_of_fit_and_finished_run_have_equal_results(tmp_path: Path) -> None:
    log = Log()
    loops = {"plain": evaluation(), "auto": evaluation(AUTO), "cfg": evaluation(ClassifierFreeGuidance(2.0))}
    common: dict[str, Any] = {"evaluations": loops, "metrics": {"mean": Mean()}, "average": 0.1}
    trainer = tiny_trainer(
        tmp_path, PostHocEMA(8), log, steps=6, accumulate_grad_batches=2, limit_val_batches=1.0, val_check_interval=4
    )
    trainer.fit(tiny_module(**common), datamodule=TinyImages())
    validated = evaluate(tmp_path, loops, "validate", metrics={"mean": Mean()}, average=0.1)
    assert without_time(validated.results[0]) == without_time(log.results[-1])
    # an earlier snapshot of the same run, at the second of three validations
    earlier = evaluate(tmp_path, {"plain": evaluation()}, metrics={"mean": Mean()}, average=0.1, images=32)
    assert without_time(earlier.results[0])["plain"] == without_time(log.results[1])["plain"]


def test_raw_weights_are_evaluated_without_snapshots(tmp_path: Path) -> None:
    module = tiny_module(average=None, evaluations={"plain": evaluation()}, metrics={"mean": Mean()})
    log = Log()
    trainer = tiny_trainer(tmp_path, log, steps=2, limit_val_batches=1.0, val_check_interval=1)
    trainer.fit(module, datamodule=TinyImages())
    assert log.results[0]["plain"]["mean"] != log.results[1]["plain"]["mean"]
    trainer.test(module, datamodule=TinyImages(), verbose=False)
    assert without_time(log.results[2]) == without_time(log.results[1])


def test_real_data_are_read_once_for_each_metric(run: Path) -> None:
    Mean.prepared = 0
    mean = Mean()
    own = {"own": mean}
    loops = {"a": evaluation(), "b": evaluation(), "c": evaluation(metrics=own), "none": evaluation(metrics={})}
    module = tiny_module(evaluations=loops, metrics={"mean": mean}, average=0.05)
    trainer = tiny_trainer(run, log := Log())
    for _ in range(2):
        trainer.test(module, datamodule=TinyImages(), verbose=False)
    assert Mean.prepared == 40
    first, second = map(without_time, log.results)
    assert first == second and first["a"] == first["b"]
    assert set(first["c"]) == {"nfe", "samples", "mean", "own_samples"} and set(first["none"]) == {"nfe", "samples"}
    assert first["c"]["mean"] == first["a"]["mean"] and first["a"]["mean_samples"] == 5


@pytest.mark.filterwarnings("ignore:.*has the weight 1")  # which is the point
def test_weight_one_has_no_cost_and_no_effect(run: Path) -> None:
    off = Autoguidance(Snapshot("1/2", 0.1), 1.0)
    loops = {"plain": evaluation(), "off": evaluation(off), "main": evaluation(Main())}
    log = evaluate(run, loops, average=0.05)
    assert torch.equal(samples(log, 0), samples(log, 1)) and torch.equal(samples(log, 0), samples(log, 2))
    assert log.results[0]["off"]["nfe"] == 3


class Pulled(Guidance):
    """Gradient guidance: shifts the clean estimate along the gradient of -|D|^2 with respect to x."""

    def __init__(self, positive: Denoiser | None = None) -> None:
        super().__init__()
        self.positive = positive if positive is not None else Main()

    def start(self, trajectory: Trajectory) -> Predict:
        positive = self.positive.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                clean = positive(x, sigma, condition).clean
                (slope,) = torch.autograd.grad(-clean.square().sum(), x)
            return Prediction((clean + 0.1 * slope).detach())

        return predict


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_guidances_can_use_gradients(run: Path, verb: str) -> None:
    log = evaluate(run, {"plain": evaluation(), "pulled": evaluation(Pulled())}, verb, average=0.05)
    one, two = (samples(log, i + (verb == "validate")).float() - 127.5 for i in range(2))
    assert two.square().mean() < one.square().mean()


# --- prediction ----------------------------------------------------------------------------------------


def test_predict_returns_the_samples(run: Path) -> None:
    prediction = evaluation(AUTO, num_samples=7, batch_size=3, first_index=100, seed=5)
    module = tiny_module(prediction=prediction, average=0.05)
    batches = tiny_trainer(run).predict(module, datamodule=TinyImages())
    assert batches is not None and [len(drawn.x) for drawn in batches] == [3, 3, 1]
    assert all(isinstance(drawn, DrawnSamples) for drawn in batches)
    index, condition, x = (torch.cat(column) for column in zip(*batches, strict=True))
    assert index.tolist() == list(range(100, 107)) and condition.tolist() == [i % 3 for i in range(100, 107)]
    assert x.dtype == torch.uint8 and x.shape == (7, 1, 4, 4)
    # the same samples as an evaluation draws
    log = evaluate(run, {"same": evaluation(AUTO, num_samples=20, first_index=95, seed=5)}, average=0.05)
    assert torch.equal(samples(log, 0)[5:12], x)


def test_sample_sets_follow_the_loops(run: Path) -> None:
    module = tiny_module(evaluations={"a": evaluation(), "b": evaluation(batch_size=4, num_samples=9)})
    assert module.evaluations.names == ["a", "b"]
    for stage in ("fit", "validate", "test"):
        assert [(len(data), size) for data, size in module.sample_sets(stage)] == [(5, 2), (9, 4)]
    ((data, size),) = module.sample_sets("predict")
    assert (len(data), size) == (1000, 256)  # type: ignore[arg-type]
    assert isinstance(data[0], SampleBatch)


def test_guidances_replace_all_but_the_first_evaluation() -> None:
    plain, other = Evaluation(num_samples=3, seed=5), Evaluation(num_samples=7)
    scaled = ScoreScaling(1.2)
    evaluations = under_guidances({"plain": plain, "other": other}, {"scaled": scaled})
    assert list(evaluations) == ["plain", "scaled"]
    assert evaluations["plain"] is plain
    assert (evaluations["scaled"].num_samples, evaluations["scaled"].seed) == (3, 5)
    assert evaluations["scaled"].guidance is scaled
    assert under_guidances({"plain": plain, "other": other}, {}) == {"plain": plain, "other": other}
    assert list(under_guidances({}, {"scaled": scaled})) == ["unguided", "scaled"]
    with pytest.raises(ValueError, match="called 'plain'"):
        under_guidances({"plain": plain}, {"plain": scaled})


class LabelShift(Guidance):
    """Shifts the clean estimate of an unconditional model by the label, which is required."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.positive = Main()

    def start(self, trajectory: Trajectory) -> Predict:
        positive = self.positive.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            assert condition is not None
            return Prediction(positive(x, sigma, None).clean + condition.to(x)[:, None, None, None])

        return predict


def test_unconditional_model_gets_the_labels_of_its_guidance(tmp_path: Path) -> None:
    data = TinyImages(classes=0)
    network = TinyNetwork(num_classes=0)

    def drawn(**options: Any) -> Log:
        log = Log()
        evaluations = {"shift": evaluation(LabelShift(), **options), "plain": evaluation(num_classes=4)}
        tiny_trainer(tmp_path, log).test(
            tiny_module(network, average=None, evaluations=evaluations), data, verbose=False
        )
        return log

    log = drawn(num_classes=4)
    labels = [torch.cat([out.condition for number, out in log.outputs if number == loop]).tolist() for loop in (0, 1)]
    assert labels == [[0, 1, 2, 3, 0]] * 2  # the unguided baseline has them for its metrics
    means = [torch.cat([out.x for number, out in log.outputs if number == loop]).float().mean() for loop in (0, 1)]
    assert means[0] > means[1] + 50  # 1.2 on average, at 127.5 per unit and clipped at 255
    assert all(out.condition.eq(2).all() for number, out in drawn(num_classes=4, labels=2).outputs if number == 0)
    with pytest.raises(ValueError, match="'shift': its guidance has 4 classes, .* none to draw .* num_classes: 4, or"):
        drawn()
    with pytest.raises(ValueError, match="'shift': its labels are drawn from 5 classes, but its guidance has 4"):
        drawn(num_classes=5)
    with pytest.raises(ValueError, match="label 4 is out of range: there are 4 classes"):
        drawn(num_classes=4, labels=4)
    with pytest.raises(ValueError, match="num_classes >= 0, got -1"):
        drawn(num_classes=-1)


def test_repetitions_evaluate_the_next_samples(run: Path) -> None:
    metrics: dict[str, SampleMetric] = {"mean": Mean(), "fd": FrechetDistance(RawPixels())}
    one: dict[str, Any] = {"num_samples": 7, "batch_size": 5, "metrics": metrics}
    three = evaluation(first_index=2, repetitions=3, **one)
    separate = {str(i): evaluation(first_index=2 + 7 * i, **one) for i in range(3)}
    (found,) = evaluate(run, {"three": three, **separate}).results
    for key in ("mean", "fd"):
        values = [found[str(i)][key] for i in range(3)]
        assert len(set(values)) == 3
        assert found["three"][key] == pytest.approx(sum(values) / 3, rel=1e-6)
        expected = pytest.approx([min(values), max(values)], rel=1e-6)
        assert [found["three"][f"{key}_min"], found["three"][f"{key}_max"]] == expected
    assert found["three"]["samples"] == 21 and found["three"]["nfe"] == found["0"]["nfe"]
    with pytest.raises(ValueError, match="repetitions >= 1, got 0"):
        evaluation(repetitions=0)


def test_metrics_with_equal_configuration_share_one_network_and_its_calls(run: Path) -> None:
    class Counted(RawPixels):
        calls: list[tuple[int, int]] = []

        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale))

        def extract(self, x: Tensor) -> Tensor:
            Counted.calls.append((id(self), len(x)))
            return super().extract(x) * self.scale

    def scores(**metrics: SampleMetric) -> dict[str, float]:
        Counted.calls = []
        evaluations = {"plain": evaluation(num_samples=9, batch_size=3, metrics=metrics)}
        return evaluate(run, evaluations).results[0]["plain"]

    def kinds() -> dict[str, SampleMetric]:
        return {"fd": FrechetDistance(Counted()), "kid": KernelDistance(Counted()), "m": Memorization(Counted())}

    alone = {}
    for name, metric in kinds().items():
        alone |= scores(**{name: metric})
    together = scores(**kinds())
    assert {k: v for k, v in together.items() if k != "seconds"} == {k: v for k, v in alone.items() if k != "seconds"}
    assert len({extractor for extractor, _ in Counted.calls}) == 1
    assert [size for _, size in Counted.calls if size == 3] == [3, 3, 3]  # once per batch
    scores(fd=FrechetDistance(Counted()), kid=KernelDistance(Counted(2.0)))
    assert len({extractor for extractor, _ in Counted.calls}) == 2
