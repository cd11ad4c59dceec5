"""Motions of 22 joints, and their HumanML3D features by a calculation frame by frame, from joints to features."""

from __future__ import annotations

import cmath
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["features_of", "walk", "write_moments"]

JOINTS = 22


def walk(turns: list[float], speed: float = 0.06, *, joints: int = JOINTS) -> tuple[Tensor, list[float]]:
    """Joints (frames + 1, joints, 3) of a walker, and its heading at each frame, `turns` radians a frame.

    Arms and legs swing, the root bobs and sways. It starts at x = z = 0 and looks along z; turns go from x toward z.
    """
    generator = torch.Generator().manual_seed(0)
    body = torch.randn(joints, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.5, 0.1])
    heading, place, positions, headings = 0.0, 0j, [], []
    for frame in range(len(turns) + 1):
        forward = 1j * cmath.exp(1j * heading)  # x + i z
        sway = 0.02 * math.sin(0.9 * frame) * cmath.exp(1j * heading)
        rows = []
        for joint in range(joints):
            x, y, z = body[joint].tolist() if joint else (0.0, 0.0, 0.0)
            z += 0.1 * math.sin(0.7 * frame + joint) * (joint > 0)
            point = place + sway + complex(x, z) * cmath.exp(1j * heading)
            rows.append([point.real, 0.9 + 0.03 * math.cos(1.4 * frame) + y, point.imag])
        positions.append(rows)
        headings.append(heading)
        place += speed * forward
        heading += turns[frame] if frame < len(turns) else 0.0
    return torch.tensor(positions, dtype=torch.float64), headings


def features_of(positions: Tensor, headings: list[float]) -> Tensor:
    """Features (12 joints - 1, frames) of joints (frames + 1, joints, 3); what does not enter positions is random."""
    frames, joints = len(positions) - 1, positions.shape[1]
    columns = []
    for t in range(frames):
        here, there = positions[t].tolist(), positions[t + 1].tolist()
        step = complex(there[0][0] - here[0][0], there[0][2] - here[0][2]) * cmath.exp(-1j * headings[t + 1])
        turn = cmath.exp(1j * (headings[t + 1] - headings[t]) / 2)  # a unit quaternion has the half angle
        column = [math.asin(turn.imag), step.real, step.imag, here[0][1]]
        for x, y, z in here[1:]:
            local = complex(x - here[0][0], z - here[0][2]) * cmath.exp(-1j * headings[t])
            column += [local.real, y, local.imag]
        columns.append(column)
    known = torch.tensor(columns, dtype=torch.float64).T
    rest = torch.randn(12 * joints - 1 - len(known), frames, generator=torch.Generator().manual_seed(1)).double()
    return torch.cat([known, rest])


def write_moments(folder: Path, features: int = 263) -> tuple[str, str]:
    """Files of a mean and a standard deviation, with steps of about 0.06 m along z."""
    generator = torch.Generator().manual_seed(2)
    mean = 0.3 * torch.randn(features, generator=generator)
    std = 0.1 + torch.rand(features, generator=generator)
    mean[:4] = torch.tensor([0.0, 0.0, 0.06, 0.9])
    std[:4] = torch.tensor([0.02, 0.01, 0.03, 0.1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("Mean.npy", mean), ("Std.npy", std)):
        np.save(folder / name, values.numpy())
    return str(folder / "Mean.npy"), str(folder / "Std.npy")
