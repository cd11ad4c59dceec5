"""Tables and figures of the comparison of training-free methods."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from scripts.lib.seed_summary import Metrics, summarize

LABEL_COLUMNS = ("guide accuracy", "judge accuracy", "guide loss", "judge loss", "gap", "fd", "class distance")
MEASURED_COLUMNS = ("misfit", "psnr", "judge accuracy", "fd")

Found = dict[str, tuple[float, dict[str, Metrics]]]
"""Method -> its rate, and its scores over the seeds."""


def write_table(found: Found, path: Path) -> str:
    """Write a Markdown table to `path` and return it: a line for each method, +- the 95 % interval over seeds."""
    columns = LABEL_COLUMNS if "gap" in next(iter(found.values()))[1] else MEASURED_COLUMNS
    lines = [f"| method | rate | {' | '.join(columns)} | lost |", "|---|--:|" + "--:|" * (len(columns) + 1)]
    for name, (rate, scores) in found.items():
        cells = [f"{scores[key]['mean']:.3g} +- {scores[key]['half_width']:.2g}" for key in columns]
        lost = f"{100 * scores['lost']['mean']:.2g} %" if scores["lost"]["mean"] else "0"
        lines.append(f"| {name} | {rate:.3g} | {' | '.join(cells)} | {lost} |")
    table = "\n".join(lines) + "\n"
    path.write_text(table)
    return table


def over_seeds(rows: dict[str, tuple[float, list[dict[str, float]]]]) -> Found:
    """Return rates, means and intervals of the methods."""
    return {name: (rate, summarize(scores)) for name, (rate, scores) in rows.items()}


def draw_samples(rows: dict[str, Tensor], path: Path) -> None:
    """Draw a row of images (N, C, H, W) uint8 for each name."""
    side, count = next(iter(rows.values())).shape[-1], len(next(iter(rows.values())))
    fig, axes = plt.subplots(len(rows), 1, figsize=(0.45 * count + 1.6, 0.48 * len(rows)))
    fig.subplots_adjust(left=1.5 / (0.45 * count + 1.6), right=0.995, top=0.995, bottom=0.005, hspace=0.08)
    for axis, (name, x) in zip(axes, rows.items(), strict=True):
        padded = torch.nn.functional.pad(x, (0, 1, 0, 1), value=255)  # (N, C, side + 1, side + 1)
        strip = padded.permute(2, 0, 3, 1).reshape(side + 1, -1, x.shape[1])
        axis.imshow(strip.expand(-1, -1, 3).numpy(), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    fig.savefig(path, dpi=120)
    plt.close(fig)
