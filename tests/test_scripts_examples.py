"""Examples run and show what they document."""

from __future__ import annotations

import pytest

from scripts.examples.bad_version import guide


def test_autoguidance_narrows_the_modes_and_keeps_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    guide([1.0, 2.0, 3.0], count=64)
    lines = capsys.readouterr().out.splitlines()
    spreads = [float(line.split("spread ")[1].split(",")[0]) for line in lines]
    assert spreads == sorted(spreads, reverse=True) and spreads[2] < 0.6 * spreads[0]
    plain, *guided = ([float(share) for share in line.split("modes ")[1].split(", ")] for line in lines)
    assert all(shares == pytest.approx(plain, abs=0.05) for shares in guided)
