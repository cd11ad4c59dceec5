"""Guidances of files, built once for all tests of a process."""

from __future__ import annotations

import functools
from pathlib import Path

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.denoiser import Denoiser

OF_TEXTS = ("nag", "pladis")
"""Files of guidances that change how attention reads texts."""

NO_TEXTS = r"changes how attention reads texts; this \w+ has no such attention"
"""The error of these for all other networks."""


@functools.cache
def guidances_of(file: Path) -> dict[str, Denoiser]:
    """The guidances of `file`; resolving them copies them, so that tests with other models find them as they were."""
    return build_guidances(read_guidances([str(file)]))
