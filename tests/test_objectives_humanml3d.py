"""Joints of HumanML3D's features: known walks recovered, energies of them, and guided features."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.sample_overview import draw_overview
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.training_free import FreeDoM
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Goal, HumanML3D, Obstacle, WeightedSum, joint_positions
from lightning_guide.objectives.humanml3d import read_moments
from lightning_guide.objectives.motion import ground_path
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.human_motions import features_of, walk, write_moments

WALKS = {
    "straight": [0.0] * 30,
    "turning": [0.05] * 30,
    "winding": [0.2 * math.sin(0.4 * t) for t in range(30)],
}


@pytest.mark.parametrize("joints", [22, 21])
@pytest.mark.parametrize("name", WALKS)
def test_known_walks_are_recovered(name: str, joints: int) -> None:
    positions, headings = walk(WALKS[name], joints=joints)
    features = features_of(positions, headings)
    assert features.shape == (12 * joints - 1, 30)
    expected = positions[:-1].permute(1, 2, 0)
    torch.testing.assert_close(joint_positions(features[None])[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(joint_positions(features[None].float())[0].double(), expected, atol=1e-5, rtol=0)


def test_paths_of_closed_form() -> None:
    """A straight walk ends at z = v t; a constant turn by a is a circle of radius v / (2 sin(a / 2))."""
    features = torch.zeros(2, 263, 61, dtype=torch.float64)
    features[:, 2], features[1, 0] = 0.05, math.pi / 60  # half of 6 degrees
    path = joint_positions(features)[:, 0, ::2]
    torch.testing.assert_close(path[0, :, -1], torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert float(path[1, :, -1].abs().max()) < 1e-12  # 60 frames of 6 degrees
    center, radius = path[1, :, :-1].mean(1, keepdim=True), 0.05 / (2 * math.sin(math.pi / 60))
    torch.testing.assert_close((path[1] - center).norm(dim=0), torch.full((61,), radius, dtype=torch.float64))
    assert float(center[0]) < 0  # turns go from x toward z, and the walk along z toward -x


def test_positions_are_differentiable() -> None:
    features = features_of(*walk(WALKS["winding"][:4], joints=3))[None].requires_grad_()
    assert torch.autograd.gradcheck(joint_positions, (features,))


def test_energies_act_on_the_ground_path(tmp_path: Path) -> None:
    positions, headings = walk(WALKS["turning"])
    mean, std = write_moments(tmp_path)
    means, deviations = read_moments(mean, std)
    x = ((features_of(positions, headings) - means) / deviations)[None]
    goal, center = [0.3, 1.0], [-0.2, 0.7]
    for joints in (None, [0], [20, 21]):
        paths = positions[:-1] if joints is None else positions[:-1, joints]
        path = paths[:, :, [0, 2]].mean(1)
        expected = (path[-1] - torch.tensor(goal)).square().sum()
        torch.testing.assert_close(HumanML3D(Goal(goal), mean, std, joints=joints)(x)[0], expected)
        depth = 0.4 - (path - torch.tensor(center)).norm(dim=1)
        torch.testing.assert_close(
            HumanML3D(Obstacle(center, 0.4), mean, std, joints=joints)(x)[0], 100 * (50 * depth).sigmoid().mean()
        )


class Walkers(Denoiser):
    """Exact denoiser of normalized features of a Gaussian, independent but for the mean."""

    data_shape, num_classes, sigma_data = (263, 40), 0, 1.0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x / (1 + sigma**2).reshape(-1, *[1] * (x.ndim - 1))


def test_guidance_reaches_a_goal_around_an_obstacle(tmp_path: Path) -> None:
    mean, std = write_moments(tmp_path)
    goal, obstacle = Goal([1.0, 1.6]), Obstacle([0.5, 0.8], 0.3)
    loss = WeightedSum([goal, Obstacle([0.5, 0.8], 0.3, margin=0.1, sharpness=10.0)], [1.0, 0.05])
    sampler, found = Euler(KarrasGrid(20, sigma_min=0.02, sigma_max=20.0)), {}
    energy = HumanML3D(loss, mean, std, joints=[0])
    for name, model in (("plain", Walkers()), ("guided", FreeDoM(energy, 5.0, positive=Walkers()))):
        x = sampler.sample(model, seeds=SampleSeeds(0, range(8))).x
        found[name] = joint_positions(torch.addcmul(*(each.float() for each in read_moments(mean, std)), x))[:, :1]
    assert float(goal(found["plain"]).mean()) > 0.5
    assert float(goal(found["guided"]).mean()) < 0.1
    assert not obstacle.hit(found["guided"]).any()


def test_an_image_of_motions() -> None:
    positions = walk(WALKS["turning"])[0][:-1].permute(1, 2, 0)[None].float()
    image = draw_overview(positions)
    flat = draw_overview(ground_path(positions))
    assert image is not None and flat is not None and torch.equal(image, flat)


def test_the_check_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines print the largest difference to the joints in files."""
    positions, headings = walk(WALKS["turning"])
    for folder, values in (("new_joint_vecs", features_of(positions, headings).T), ("new_joints", positions)):
        (tmp_path / "HumanML3D" / folder).mkdir(parents=True)
        np.save(tmp_path / "HumanML3D" / folder / "000021.npy", values.float().numpy())
    page = (Path(__file__).parent.parent / "docs/training_free.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?new_joints.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert 0 < float(capsys.readouterr().out.removeprefix("tensor(").rstrip(")\n")) < 1e-5


def test_errors(tmp_path: Path) -> None:
    mean, std = write_moments(tmp_path)
    with pytest.raises(ValueError, match=r"motions have shape \(262, 5\); expected \(12 joints - 1, frames\)"):
        joint_positions(torch.zeros(2, 262, 5))
    with pytest.raises(ValueError, match=r"joints are \[22\]; expected some of 0 to 21"):
        HumanML3D(Goal([0.0, 1.0]), mean, std, joints=[22])
    with pytest.raises(ValueError, match=r"motions have shape \(251, 5\); expected \(263, frames\), as mean"):
        HumanML3D(Goal([0.0, 1.0]), mean, std)(torch.zeros(2, 251, 5))
    with pytest.raises(ValueError, match="Nothing.npy: cannot be read as moments of motions"):
        read_moments(mean, str(tmp_path / "Nothing.npy"))
    other, zero = tmp_path / "other.npy", tmp_path / "zero.npy"
    np.save(other, np.ones(251)), np.save(zero, np.zeros(263))
    with pytest.raises(ValueError, match=r"other.npy have shape \(251,\); expected \(12 joints - 1,\)"):
        read_moments(mean, str(other))
    with pytest.raises(ValueError, match=r"standard deviations in .*zero.npy are not all positive"):
        read_moments(mean, str(zero))
    with pytest.raises(ValueError, match="or \\(joints, 3, frames\\)"):
        ground_path(torch.zeros(2, 22, 4, 5))
