"""Walking paths: properties of the generator, and batches of the datamodule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from datamodules import Trajectories
from datamodules.motion import GAITS, generate_walks


def drawn(label: int, count: int, **options: float) -> Tensor:
    labels = torch.full((count,), label)
    return generate_walks(labels, torch.Generator().manual_seed(0), **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("label", range(len(GAITS)))
def test_gait_has_its_speed_sway_and_turning(label: int) -> None:
    gait, paths = GAITS[label], drawn(label, 4000, frames=40, seconds=0.05)
    # the squared displacement over one second minus that of the sway is the squared mean velocity
    angles = torch.atan2(paths[:, 1, -1], paths[:, 0, -1])
    assert abs(float(angles.cos().mean())) < 0.04 and abs(float(angles.sin().mean())) < 0.04
    length = paths[..., -1].norm(dim=1).mean()
    straight = gait.speed * 2.0
    assert 0.93 * straight < length < 1.02 * straight
    # headings of the first and the last fifth differ by the integral of the turning rate
    first, last = paths[..., 8] - paths[..., 0], paths[..., -1] - paths[..., -9]
    turned = (first * last).sum(1) / (first.norm(dim=1) * last.norm(dim=1))
    assert (1 - turned).mean() < 0.02 + gait.turning**2 + (3 * gait.sway / gait.speed) ** 2


def test_without_noise_paths_are_straight_with_sway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread and turning rate at 0: positions are the closed form."""
    monkeypatch.setattr("datamodules.motion.SPREAD", 0.0)
    monkeypatch.setattr(
        "datamodules.motion.GAITS", tuple(type(g)(g.name, g.speed, 0.0, g.sway, g.steps) for g in GAITS)
    )
    generator = torch.Generator().manual_seed(5)
    paths = generate_walks(torch.tensor([3, 0]), generator, frames=7, seconds=0.1).double()
    start, phase = 2 * math.pi * torch.rand(2, 2, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for i, gait in enumerate((GAITS[3], GAITS[0])):
        s, p, along = float(start[i]), float(phase[i]), 0.0
        for frame in range(7):
            t = 0.1 * (frame + 1)
            along += 0.1 * gait.speed * (1 + 0.15 * math.sin(2 * math.pi * gait.steps * t + 2 * p))
            sway = gait.sway * math.sin(math.pi * gait.steps * t + p)
            expected = [along * math.cos(s) - sway * math.sin(s), along * math.sin(s) + sway * math.cos(s)]
            assert paths[i, :, frame].tolist() == pytest.approx(expected, abs=1e-6)


def test_encoding_and_fixed_paths() -> None:
    data = Trajectories(batch_size=32, training_size=4096, heldout_size=64)
    assert data.data_shape == (2, 64) and data.num_classes == 4
    (batch,) = itertools.islice(iter(data.train_dataloader()), 1)
    assert batch.x.shape == (32, 2, 64) and set(batch.condition.tolist()) == {0, 1, 2, 3}
    x = data.encode(data.training().x)
    assert 0.97 < float(x.std()) < 1.03  # unit variance, assumed by the conversions of the papers' step sizes
    torch.testing.assert_close(data.decode(x), data.training().x)
    path, steps = data.training().x[5], x[5]
    for frame in (0, 1, 63):  # encoded data are steps, the first one from the origin
        before = path[:, frame - 1] if frame else torch.zeros(2)
        torch.testing.assert_close(steps[:, frame], (path[:, frame] - before) / data.meters)
    other = Trajectories(batch_size=32, training_size=4096, heldout_size=64, seed=1)
    assert torch.equal(other.training().x, data.training().x)
    assert not torch.equal(data.heldout().x, data.training().x[:64])


def test_invalid_sizes_and_units() -> None:
    with pytest.raises(ValueError, match="positive frames"):
        Trajectories(frames=0)
    with pytest.raises(ValueError, match="positive frames"):
        Trajectories(meters=0)
