"""Results of experiments as JSON; importing this module selects matplotlib's backend without a display."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")


def write(out: str, name: str, results: Any) -> Path:
    """Save `results` as `out`/`name`.json; return the path without the suffix."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1))
    return folder / name


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    low, median, high = q.tolist()
    return {"q25": low, "median": median, "q75": high}
