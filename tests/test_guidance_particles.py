"""Best of N, Feynman-Kac steering and TDS: exact targets, independence of samples, cost, sentences."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.cli import main
from lightning_guide.denoiser import Trajectory
from lightning_guide.device_seeds import DeviceSeeds
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import MMPS, TDS, BestOfN, FeynmanKac, ParticleSampler
from lightning_guide.guidance.particles.base import Particles
from lightning_guide.networks import SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy, Linear, Matrix, Measurement, SquaredDistance
from lightning_guide.objectives.energy import Loss
from lightning_guide.samplers import DDIM, DPMSolver2M, Euler, Heun, Restart, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.devices import to_device

GRID = KarrasGrid(60, sigma_max=20.0)
ENERGY = SquaredDistance([2.0], temperature=1.0)
PRIOR = gaussian([0.0], [[1.0]])  # with the energy: N(1, 1/2)
KINDS = {
    "best": lambda energy, **options: BestOfN(DDIM(GRID), energy, **options),
    "feynman-kac": lambda energy, **options: FeynmanKac(DDIM(GRID), energy, **options),
    "churn": lambda energy, **options: FeynmanKac(Heun(GRID, s_churn=40.0), energy, **options),
    "tds": lambda energy, **options: TDS(energy, GRID, **options),
}


def draw(sampler: ParticleSampler, count: int, denoiser: Any = PRIOR, **options: Any) -> Tensor:
    return sampler.sample(denoiser, seeds=SampleSeeds(0, range(count)), **options).x


# Targets


@pytest.mark.parametrize("name", ["feynman-kac", pytest.param("churn", marks=pytest.mark.slow), "tds"])
def test_samples_of_a_gaussian_under_a_quadratic_loss(name: str) -> None:
    """N(1, 1/2), less what 60 steps of the sampler lack of the prior's variance."""
    x = draw(KINDS[name](ENERGY, particles=24), 300)
    prior = float(draw(KINDS["best"](Linear([0.0]), particles=1), 1500).var()) if name != "churn" else 1.0
    mean, variance = 2 * prior / (prior + 1), prior / (prior + 1)
    assert float(x.mean()) == pytest.approx(mean, abs=0.13)  # standard error 0.04; bias of 24 particles
    assert float(x.var()) == pytest.approx(variance, rel=0.25)


@pytest.mark.slow
def test_more_particles_are_nearer_to_the_target() -> None:
    errors = {
        name: [abs(float(draw(KINDS[name](ENERGY, particles=n), 300).mean()) - 1) for n in (1, 4, 16)]
        for name in ("feynman-kac", "tds")
    }
    for few, some, many in errors.values():
        assert few > some > many
    assert errors["tds"][0] < 0.6 * errors["feynman-kac"][0]  # its proposals know of the loss


class Sides(Energy):
    """Loss from -1 on the left to 1 on the right."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return x[:, 0].clamp(-2, 2) / 2


@pytest.mark.slow
def test_modes_get_their_weights() -> None:
    """Two modes whose ratio the loss changes from 1 : 1 to e^2 : 1."""
    mixture = GaussianMixture([[-2.0], [2.0]], 0.01 * torch.ones(2, 1, 1))
    loss = Sides()
    for name in ("feynman-kac", "tds"):
        share = float((draw(KINDS[name](loss, particles=16), 300, mixture) < 0).double().mean())
        assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=0.08)


def test_best_of_n_has_the_mean_of_the_largest_of_n_normals() -> None:
    largest = draw(BestOfN(DDIM(KarrasGrid(80)), Linear([1.0]), particles=4), 1000)
    assert float(largest.mean()) == pytest.approx(1.0294, abs=0.1)


def test_a_strength_scales_the_loss() -> None:
    twice = draw(FeynmanKac(DDIM(GRID), ENERGY, particles=16, strength=2.0), 50)
    torch.testing.assert_close(
        twice, draw(FeynmanKac(DDIM(GRID), SquaredDistance([2.0], temperature=0.5**0.5), particles=16), 50)
    )


# Identities


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_of_zero_leaves_one_of_the_particles_alone(name: str) -> None:
    zero = Linear([0.0])
    many = SampleSeeds(mix(0, "particles"), range(3 * 5))
    plain = (Heun(GRID, s_churn=40.0) if name == "churn" else DDIM(GRID)).sample(PRIOR, seeds=many).x.reshape(5, 3)
    x = draw(KINDS[name](zero, particles=3), 5)
    assert bool(((x - plain).abs() < 1e-5).any(1).all())


@pytest.mark.parametrize("name", KINDS)
def test_a_sample_depends_neither_on_its_batch_nor_on_others(name: str) -> None:
    sampler = KINDS[name](ENERGY, particles=5)
    whole = draw(sampler, 7)
    part = sampler.sample(PRIOR, seeds=SampleSeeds(0, [5, 2])).x
    torch.testing.assert_close(part, whole[[5, 2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_network_calls_and_shapes(name: str) -> None:
    sampler = KINDS[name](ENERGY, particles=5)
    end = sampler.sample(PRIOR, seeds=SampleSeeds(0, range(7)))
    single = (Heun(GRID, s_churn=40.0) if name == "churn" else DDIM(GRID)).sample(PRIOR, seeds=SampleSeeds(0, [0]))
    assert end.evaluations == 5 * single.evaluations and end.x.shape == (7, 1) and len(end.seeds) == 7


class Own(Energy):
    """Distance to a target of the sample's own, its index less 2."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        raise AssertionError

    def start(self, trajectory: Trajectory) -> Loss:
        targets = to_device(torch.tensor(trajectory.seeds.indices) - 2, trajectory.x.device)
        return lambda x, condition, number: 2 * (x[:, 0] - targets[number]).square()


@pytest.mark.parametrize("name", KINDS)
def test_losses_with_data_of_each_sample(name: str) -> None:
    x = KINDS[name](Own(), particles=16).sample(PRIOR, seeds=SampleSeeds(0, [4, 0, 2])).x[:, 0]
    assert x[0] > 0.4 and x[1] < -0.4 and abs(x[2]) < 1.2  # N(1.6, 0.2), N(-1.6, 0.2), N(0, 0.2)


def test_all_particles_of_a_sample_are_guided_by_its_measurement() -> None:
    measurement = Measurement(Matrix([[1.0]]), torch.arange(6.0)[:, None], noise=0.02)
    guided, seeds = MMPS(measurement, positive=gaussian([0.0], [[9.0]])), SampleSeeds(0, [4, 1])
    end = BestOfN(Euler(GRID), SquaredDistance([0.0]), particles=3).sample(guided, seeds=seeds)
    y = measurement.measurements(end)
    torch.testing.assert_close(end.x, y, rtol=0, atol=0.1)
    many = Trajectory(x=y.repeat_interleave(3, 0), seeds=seeds.repeated(3, "particles"), sigma=1.0)
    assert torch.equal(measurement.measurements(many), many.x)


@pytest.mark.parametrize("name", KINDS)
def test_labels_reach_model_and_loss(name: str) -> None:
    classes = GaussianMixture([[-1.0], [1.0]], 0.04 * torch.ones(2, 1, 1), labels=[0, 1])
    labels = torch.tensor([1, 0, 1, -1])
    seen: list[Tensor] = []

    class Watching(Energy):
        num_classes = 2

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            assert condition is not None
            seen.append(condition)
            return 0 * x[:, 0]

    x = KINDS[name](Watching(), particles=3).sample(classes, seeds=SampleSeeds(0, range(4)), condition=labels).x[:, 0]
    assert torch.equal(x[:3].sign(), torch.tensor([1.0, -1.0, 1.0]))
    assert all(torch.equal(each, labels.repeat_interleave(3)) for each in seen) and seen


@pytest.mark.parametrize("name", KINDS)
def test_a_start_is_added_to_each_particle(name: str) -> None:
    starts: list[int] = []

    def start(noise: Tensor) -> Tensor:
        starts.append(len(noise))
        return noise

    sampler = KINDS[name](ENERGY, particles=3)
    torch.testing.assert_close(draw(sampler, 4, start=start), draw(sampler, 4))
    assert starts == [4, 4, 4]


@pytest.mark.parametrize("name", KINDS)
def test_noise_of_particles_is_drawn_where_that_of_samples_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleSeeds, "normal", None)
    x = KINDS[name](ENERGY, particles=2).sample(PRIOR, seeds=DeviceSeeds(0, range(5))).x
    assert len(x.unique()) == 5


# Resampling


def test_resampling_follows_the_weights_and_only_where_they_are_uneven() -> None:
    trajectory = Trajectory(torch.zeros(2000, 1), SampleSeeds(0, range(2000)), 1.0)
    particles = Particles(ENERGY, trajectory, None, 4)
    weights = torch.tensor([0.7, 0.1, 0.2, 0.0], dtype=torch.float64)
    log_weights = torch.cat([weights.log().expand(1000, 4), torch.zeros(1000, 4, dtype=torch.float64)])
    rows, after = particles.ancestors(log_weights, 0.6)
    chosen = rows.reshape(-1, 4) - 4 * torch.arange(2000)[:, None]
    assert torch.equal(chosen[1000:], torch.arange(4).expand(1000, 4))
    shares = torch.stack([(chosen[:1000] == k).double().mean() for k in range(4)])
    torch.testing.assert_close(shares, weights, rtol=0, atol=0.02)
    assert float(after[:1000].std(1).max()) < 1e-12
    taken = particles.one(log_weights)[:1000] - 4 * torch.arange(1000)
    drawn = torch.stack([(taken == k).double().mean() for k in range(4)])
    torch.testing.assert_close(drawn, weights, rtol=0, atol=0.05)


# Bad input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BestOfN(DDIM(), ENERGY, particles=0), "BestOfN needs at least one particle, got 0"),
        (
            lambda: FeynmanKac(Euler(), ENERGY),
            "FeynmanKac needs a sampler that adds noise .*got Euler",
        ),
        (lambda: FeynmanKac(Heun(), ENERGY), "got Heun"),
        (lambda: FeynmanKac(DPMSolver2M(), ENERGY), "got DPMSolver2M"),
        (lambda: FeynmanKac(DDIM(), ENERGY, threshold=2.0), "a threshold in .0, 1. and every >= 1, got 2.0 and 1"),
        (lambda: FeynmanKac(DDIM(), ENERGY, every=0), "every >= 1, got 0.5 and 0"),
        (lambda: TDS(ENERGY, threshold=-1.0), "TDS needs a threshold in .0, 1., got -1.0"),
    ],
)
def test_impossible_settings_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# In the command line


@pytest.mark.slow
def test_config_with_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/particles.yaml over a run of digits: three evaluations, whose samples the guide classifies better."""
    monkeypatch.chdir(tmp_path)
    guide = SmallClassifier([1, 8, 8], num_classes=10, widths=[8, 16])
    for name in ("guide", "classifier"):  # the classifier measures
        store = SnapshotStore(Path(f"runs/digits/{name}/snapshots"))
        store.save(guide.state_dict(), images=8, sigma_rel=0.0, recipe=guide.recipe, planned_images=8)
    configs = Path(__file__).parent.parent / "configs"
    words = ["-c", str(configs / "digits/main.yaml"), "-c", str(configs / "particles.yaml")]
    words += [
        "-c",
        str(configs / "shrink.yaml"),
        "--trainer.limit_val_batches",
        "1",
        "--trainer.val_check_interval",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["lightning-guide", "fit", *words, "--trainer.default_root_dir", "run"])
    main()
    (file,) = Path("run").rglob("metrics.json")
    found = json.dumps(json.loads(file.read_text()))
    assert all(name in found for name in ("best_of_4", "feynman_kac", "tds"))


@pytest.mark.parametrize("outer", [Restart, TimeTravel, lambda inner: BestOfN(inner, ENERGY, particles=2)])
def test_steps_of_a_sampler_that_selects_are_refused(outer: Callable[[Any], Sampler]) -> None:
    with pytest.raises(ValueError, match="takes the steps of its sampler, which lose what BestOfN selects"):
        outer(BestOfN(Euler(4), ENERGY, particles=2))
    with pytest.raises(ValueError, match=r"needs a sampler whose steps it takes, such as Heun\(16\), got 8"):
        outer(8)
