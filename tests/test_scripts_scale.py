"""The script of cost against work: its smallest sizes run, and what does not depend on the machine holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks.scale import Cost, exponent, run, table
from scripts.benchmarks.scale_cases import CASES


def test_exponents_of_power_laws() -> None:
    for power in (0.0, 1.0, 1.5, 2.0):
        costs = [Cost(size, 3 * size**power, 0) for size in (10, 100, 500, 2000)]
        assert exponent(costs) == pytest.approx(power, abs=1e-6) == exponent(costs[-2:])


@pytest.mark.slow
def test_smallest_sizes_of_all_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(tmp_path), tiny=True)
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert len(rows) == 2 + len(CASES) and all(f"| {case.name} |" in "\n".join(rows) for case in CASES)
    assert rows[2] in capsys.readouterr().out
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_the_table_names_both_exponents() -> None:
    text = table({"bricks": [Cost(1, 1.0, 0.0), Cost(10, 2.0, 1.0), Cost(100, 20.0, 8.0)]})
    assert text.splitlines()[-1] == "| bricks | 1, 100 | 0.65 | 1.00 | 20 | 8 |"
