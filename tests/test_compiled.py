"""Compiled denoisers: eager results, one graph for each form of a call, none for other weights, levels and batches."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lightning_guide.commands.guidance_files import build_guidances
from lightning_guide.compiled import Call, Compiled, compiled_call, graphed_call
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import Evaluation
from lightning_guide.guidance import ClassifierFreeGuidance, Guided, Interval, PerturbedAttentionGuidance, Unconditional
from lightning_guide.guidance.negatives import IdentityAttention, RandomMask
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.inference import compile_networks, fuse_weights, with_fixed_addresses
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.devices import EULER, Models, condition_of, make_network, small_transformer
from tests.evaluated import evaluate, finished_run
from tests.guidance_files import OF_TEXTS
from tests.runs import TinyNetwork, evaluation
from tests.small_networks import LABELS, SIGMA, noisy_images, trajectory, unet
from tests.test_devices_sampling import GUIDANCES

EAGER: Call = compiled_call("eager")  # traced and guarded as with every backend, and run without another compiler


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@functools.cache
def models(name: str = "") -> Models:
    return Models(make_network(name) if name else small_transformer())


def drawn(denoiser: Denoiser, sampler: Euler = EULER) -> Tensor:
    count = 3
    return sampler.sample(denoiser, seeds=SampleSeeds(0, range(count)), condition=condition_of(denoiser, count)).x


def assert_same(denoiser: Denoiser, ready: Denoiser, sampler: Euler = EULER, *, tolerance: float = 1e-5) -> None:
    expected = drawn(denoiser, sampler)
    torch.testing.assert_close(drawn(ready, sampler), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def graphs() -> int:
    """Graphs that were traced; none of them has a break."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def test_weights_levels_and_snapshots_do_not_compile_again() -> None:
    """A step with a negative is one graph of all rows, one without is another."""

    def guided(model: Denoiser, weight: float) -> Denoiser:
        return ClassifierFreeGuidance(Interval(weight, low=0.1, high=4.0), positive=model)

    tiny = Models(Preconditioned(TinyNetwork((1, 8, 8), num_classes=4)).eval().requires_grad_(False))
    main, other = tiny.main, tiny.other
    assert_same(guided(main, 2.0), compile_networks(guided(main, 2.0), EAGER))
    assert graphs() == 2
    levels = Euler(KarrasGrid(3, sigma_min=0.2, sigma_max=6.0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for model, weight in ((main, -1.0), (main, 3.0), (other, 3.0)):
            assert_same(guided(model, weight), compile_networks(guided(model, weight), EAGER), levels)


def test_positive_unconditional_and_perturbed_copy_are_one_graph_in_each_trajectory() -> None:
    model = models().main

    def guided(weight: float) -> Denoiser:
        negatives = [Unconditional(model), Perturbed([IdentityAttention()], positive=model)]
        return Guided(negatives, [weight, 1.5], positive=model)

    assert_same(guided(2.0), compile_networks(guided(2.0), EAGER))
    assert graphs() == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(guided(4.0), compile_networks(guided(4.0), EAGER))


def test_copies_that_draw_in_each_call_are_not_compiled_nor_what_they_share() -> None:
    made = Guided([Perturbed([RandomMask(0.5)], positive=models().main)], [2.0], positive=models().main)
    ready = compile_networks(made, EAGER)
    assert_same(made, ready)
    assert graphs() == 0
    (model,) = {part for part in ready.modules() if isinstance(part, Compiled)}
    assert not model.is_eager  # where it is called by itself


def test_predicted_variances_are_kept() -> None:
    model = unet(data_shape=(2, 8, 8))
    model.network.variances, model.data_shape = True, (1, 8, 8)
    model.network.data_shape = (1, 8, 8)
    x, calls = noisy_images(), list[Denoiser]()

    def call(denoiser: Denoiser, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        calls.append(denoiser)
        clean = torch.zeros(3, 1, 8, 8)
        return clean, clean + 1

    found = compile_networks(model, call).start(state := trajectory())(x, SIGMA, LABELS)
    assert found.variance is not None and bool((found.variance == 1).all())
    assert calls == [model] and state.evaluations == 1


def test_every_batch_of_an_evaluation_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def call(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Tensor | None) -> tuple[Tensor, None]:
        rows.append(len(x))
        return denoiser(x, sigma, condition), None

    monkeypatch.setattr("lightning_guide.inference.compiled_call", lambda: call)
    run, found = finished_run(tmp_path), []
    plain = evaluation(num_samples=7, batch_size=5)
    for each in (plain, replace(plain, compile=True)):
        log = evaluate(run, {"plain": each}, metrics={}, average=0.05)
        found.append(torch.cat([outputs.x for _, outputs in log.outputs]))
        results = log.results[0]["plain"]
        assert results["samples"] == 7 and results["nfe"] == 3
    assert set(rows) == {5} and len(rows) == 6
    assert (found[0].int() - found[1].int()).abs().max() <= 1  # of 255, from rounding


def test_copies_of_a_network_share_every_address_that_a_graph_reads() -> None:
    network = unet().network
    fixed = with_fixed_addresses(network)
    assert list(network.buffers()) and not list(fixed.buffers())
    assert {name for name, _ in fixed.named_parameters()} == {*network.state_dict()}
    copies = [Perturbed([IdentityAttention()], positive=Preconditioned(fixed)).network(trajectory()) for _ in range(2)]
    addresses = [[parameter.data_ptr() for parameter in copy.parameters()] for copy in copies]
    assert addresses[0] == addresses[1] and not list(copies[0].buffers())
    x = noisy_images()
    assert torch.equal(Preconditioned(fixed)(x, SIGMA, LABELS), Preconditioned(network)(x, SIGMA, LABELS))


def test_settings_of_compile_are_checked() -> None:
    with pytest.raises(ValueError, match="needs compile: false, true or graphs, got 'graph'"):
        Evaluation(compile="graph")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="^compile: graphs is for GPUs of CUDA, but the model is on cpu; expected comp"
    ):
        fuse_weights(unet(), compile="graphs")


def test_graphs_without_a_gpu_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    with pytest.raises(ValueError, match="evaluation 'plain': compile: graphs is for GPUs of CUDA, but the model is"):
        evaluate(run, {"plain": evaluation(compile="graphs")}, metrics={}, average=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("network", ["DiT", "EDM2", "MDM"])
def test_every_guidance_compiled_equals_eager(network: str, name: str) -> None:
    found = models("DiT of texts" if name in OF_TEXTS else network)
    try:
        made = build_guidances({name: GUIDANCES[name]})[name].resolve(found).eval()
        drawn(made)
    except ValueError as refused:
        pytest.skip(str(refused))
    ready = compile_networks(fuse_weights(made), compiled_call("aot_eager"))
    assert_same(made, ready)
    assert graphs() <= 2  # with the negative and without, the guider, or two shapes
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(made, ready)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++ on a CPU")
@pytest.mark.parametrize("call", [compiled_call, graphed_call])
def test_generated_code_equals_eager(call: Callable[[], Call]) -> None:
    """On a CPU `graphed_call` has no graphs, but copies and marks."""
    made = PerturbedAttentionGuidance(2.0, positive=unet())
    assert_same(made, compile_networks(fuse_weights(made), call()), tolerance=1e-4)
    assert graphs() == 1
