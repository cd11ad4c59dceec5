"""HumanML3D's features of a motion as positions of joints, and energies of these positions.

Guo et al. 2022, "Generating Diverse and Natural 3D Human Motions from Text", CVPR, section 5. A frame of a motion of J
joints (22, or 21 of KIT-ML) has 12 J - 1 numbers (263):

| numbers | content |
|---|---|
| 1 | turn of the root about the vertical axis to the next frame, half its angle in radians |
| 2 | its step to the next frame along x and z, in meters, seen from the next frame |
| 1 | its height, in meters |
| 3 (J - 1) | positions of the other joints: x and z from the root, y from the ground, in meters, seen from the frame |
| 6 (J - 1), 3 J, 4 | rotations, velocities, contacts of the feet; they do not enter positions |

"Seen from a frame" means that the root looks along z. The paper says neither that the first number is half the turn
(the arcsine of the number of a unit quaternion), nor from which frame steps are seen; the published files of features
and joints say it together (docs/training_free.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.objectives.composition import Transformed
from lightning_guide.objectives.energy import Energy
from lightning_guide.utils.arrays import read_array

__all__ = ["HumanML3D", "joint_positions", "read_moments"]


def joint_positions(features: Tensor) -> Tensor:
    """Return positions (B, J, 3, frames) in meters of `features` (B, 12 J - 1, frames), not normalized.

    The root, joint 0, starts at x = z = 0 and looks along z. Differentiable.

    Raises:
        ValueError: if the number of features is another.
    """
    if features.ndim != 3 or (features.shape[1] + 1) % 12:
        raise ValueError(f"motions have shape {tuple(features.shape[1:])}; expected (12 joints - 1, frames)")
    J = (features.shape[1] + 1) // 12
    earlier = F.pad(features[:, :3], (1, 0))[..., :-1]  # what the frame before says of this one
    heading = 2 * earlier[:, 0].cumsum(-1)  # (B, frames)
    root_x, root_z = (each.cumsum(-1) for each in _turned(earlier[:, 1], earlier[:, 2], heading))
    local = features[:, 4 : 1 + 3 * J].unflatten(1, (J - 1, 3))  # (B, J - 1, 3, frames)
    x, z = _turned(local[:, :, 0], local[:, :, 2], heading[:, None])
    others = torch.stack([x + root_x[:, None], local[:, :, 1], z + root_z[:, None]], dim=2)
    root = torch.stack([root_x, features[:, 3], root_z], dim=1)
    return torch.cat([root[:, None], others], dim=1)


def _turned(x: Tensor, z: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and z turned by `angle` from x toward z."""
    cos, sin = angle.cos(), angle.sin()
    return x * cos - z * sin, x * sin + z * cos


def read_moments(mean: str, std: str) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the features, (features, 1) each, float64, from two npy files.

    Raises:
        ValueError: naming the file, if it cannot be read, or does not hold one number for each of 12 J - 1 features.
    """
    found = [
        torch.from_numpy(read_array(Path(path).expanduser(), "moments of motions")).to(torch.float64)
        for path in (mean, std)
    ]
    for path, moment in zip((mean, std), found, strict=True):
        if moment.ndim != 1 or (len(moment) + 1) % 12 or moment.shape != found[0].shape:
            raise ValueError(
                f"the moments of motions in {path} have shape {tuple(moment.shape)}; expected (12 joints - 1,), "
                "as (263,), of mean and standard deviation"
            )
    if not bool((found[1] > 0).all()):
        raise ValueError(f"the standard deviations in {std} are not all positive")
    return found[0][:, None], found[1][:, None]


class HumanML3D(Transformed):
    """Energy of the joints (B, J, 3, frames) in meters, for a denoiser of HumanML3D's normalized features, as MDM.

    `Goal` and `Obstacle` act on the mean of the joints on the ground.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, energy: Energy, mean: str, std: str, *, joints: Sequence[int] | None = None) -> None:
        """Take the `energy` of joints.

        Args:
            energy: of positions (B, joints, 3, frames).
            mean: npy file of the means of the features, those by which the data of the model were normalized.
            std: npy file of their standard deviations.
            joints: numbers of the joints that the energy receives, as [0], the root; default: all.

        Raises:
            ValueError: naming the file, if one is not of this kind; or if there is no such joint.
        """
        super().__init__(energy)
        means, deviations = read_moments(mean, std)
        count = (len(means) + 1) // 12
        if joints is not None and not (joints and all(0 <= joint < count for joint in joints)):
            raise ValueError(f"HumanML3D: joints are {list(joints)}; expected some of 0 to {count - 1}")
        self.joints = None if joints is None else list(joints)
        self.register_buffer("mean", means)
        self.register_buffer("std", deviations)

    def transform(self, x: Tensor) -> Tensor:
        """Return the positions of the chosen joints for normalized features `x` (B, features, frames).

        Raises:
            ValueError: if x has another number of features than the files.
        """
        if x.ndim != 3 or x.shape[1] != len(self.mean):
            raise ValueError(f"motions have shape {tuple(x.shape[1:])}; expected ({len(self.mean)}, frames), as mean")
        positions = joint_positions(torch.addcmul(self.mean.to(x), self.std.to(x), x))
        return positions if self.joints is None else positions[:, self.joints]
