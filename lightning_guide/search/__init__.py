"""Searching the space of evaluations: sweeps over a grid, and a tuner that finds a good guider within a budget."""

from __future__ import annotations

from lightning_guide.search.commands import Search, Sweep, Tune

__all__ = ["Search", "Sweep", "Tune"]
