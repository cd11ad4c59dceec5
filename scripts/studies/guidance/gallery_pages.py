"""Images of docs/gallery.md: the same seeds under every guidance, one strip for each file of `methods`.

    python -m scripts.studies.guidance.gallery_pages runs/cifar32/cpu --guider 1/2.5

The rows of a strip are the unguided samples, those at the weight w of the config, and those at 1 + factor (w - 1). A
file with several guidances has one row for each, at its weight. Columns are sample numbers, labeled 0, 1, 2, ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import lightning_guide as lg
from lightning_guide.commands.gallery import applicable_guidances
from lightning_guide.commands.guidance_files import build_guidances, guidance_paths, read_guidances
from lightning_guide.utils.images import to_pixels
from scripts.lib.command_line import run_script
from scripts.lib.guidance_weights import stronger, with_weight
from scripts.lib.guiders import with_guider

GAP = 4  # pixels between samples


def draw(
    run: str,
    *,
    guider: str = "1/2.5",
    methods: list[str] = ["configs/guidance"],  # noqa: B006
    out: str = "docs/images",
    count: int = 8,
    seed: int = 0,
    steps: int = 14,
    factor: float = 4,
    scale: int = 2,
) -> None:
    """Write a file gallery_NAME.png for each file of guidances that fits the model.

    Args:
        run: folder of the run.
        guider: images seen by the earlier snapshots that serve as guiders, or a fraction of the run.
        methods: files of guidances, or folders of them.
        out: folder of the images.
        count: samples in a row.
        seed: of the samples.
        steps: steps of DPM-Solver++(2M).
        factor: of w - 1 in the last row.
        scale: pixels on a side for each pixel of the model.
    """
    opened = lg.Run(run)
    model = opened.model()
    print(f"the model has seen {max(entry.images for entry in opened.snapshots.entries()):,} images")

    def sample(guidance: dict[str, Any] | None) -> Tensor:
        built = None if guidance is None else next(iter(build_guidances({"guidance": guidance}).values()))
        labels = [number % model.num_classes for number in range(count)]
        return to_pixels(lg.sample(opened.resolve(built), lg.DPMSolver2M(steps), labels=labels, seed=seed))

    plain = sample(None)
    for file in guidance_paths(methods):
        written = {name: with_guider(each, guider) for name, each in read_guidances([str(file)]).items()}
        try:
            found = list(applicable_guidances(written, opened).values())
        except ValueError as reason:
            print(f"no image for {file.stem}: {reason}")
            continue
        rows = found if len(written) > 1 else [*found, with_weight(found[0], stronger(found[0], factor))]
        path = Path(out, f"gallery_{file.stem}.png")
        _write(path, [plain, *map(sample, rows)], scale)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def _write(path: Path, rows: list[Tensor], scale: int) -> None:
    """Write uint8 images (B, C, H, W), a row for each batch, as a PNG file of 52 levels a color, for its size."""
    height, width = (side * scale + GAP for side in rows[0].shape[2:])
    page = torch.full((3, len(rows) * height - GAP, len(rows[0]) * width - GAP), 255, dtype=torch.uint8)
    for top, row in enumerate(rows):
        large = (row.int() + 2).div(5, rounding_mode="floor").mul(5).to(torch.uint8)
        large = large.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        for left, image in enumerate(large):
            page[:, top * height : (top + 1) * height - GAP, left * width : (left + 1) * width - GAP] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page.permute(1, 2, 0).numpy()).save(path, optimize=True)


if __name__ == "__main__":
    run_script(draw)
