"""Cost against work: seconds and memory of growing work, with the exponent of a power law, as a table and a figure.

    python -m scripts.benchmarks.scale --out results/scale

Each point is measured in a process of its own, in CPU time of one thread. The exponent is the slope of
the logarithm of the seconds over that of the work, by least squares over all sizes and between the last two: a fixed
cost at the start lowers the first, so that the second tells what happens at large sizes. At most 1 is linear or better.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch

from scripts.benchmarks.scale_cases import CASES, Case
from scripts.lib.command_line import run_script

matplotlib.use("Agg")

ENOUGH = 0.2  # seconds after which work is not repeated


class Cost(NamedTuple):
    """Cost of one size: what it is compared with, CPU seconds, and growth of memory in MiB."""

    work: float
    seconds: float
    memory: float


def exponent(costs: Sequence[Cost]) -> float:
    """Slope of ln(seconds) over ln(work) by least squares.

    Examples:
        >>> exponent([Cost(1, 2.0, 0), Cost(10, 200.0, 0)])
        2.0
    """
    x, y = ([math.log(value) for value in column] for column in list(zip(*costs, strict=True))[:2])
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    products = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(products / math.fsum((a - mean_x) ** 2 for a in x), 6)


def measure(case: Case, size: int, *, enough: float = ENOUGH) -> Cost:
    """Measure one size in a forked process; work is repeated until so many seconds are `enough`."""
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(case, size, enough, there))
    process.start()
    there.close()
    try:
        return Cost(*here.recv())
    except EOFError:
        raise RuntimeError(f"{case.name} of size {size} failed") from None
    finally:
        process.join()


def _measure(case: Case, size: int, enough: float, out: Connection) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work, act = case.prepare(size, Path(folder))
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far
        seconds: list[float] = []
        while not seconds or (sum(seconds) < enough and len(seconds) < 20):
            begin = time.process_time()
            act()
            seconds.append(time.process_time() - begin)
        out.send((work, min(seconds), _memory("VmHWM") - before))
    out.close()
    os._exit(0)


def _memory(name: str) -> float:
    """Return an entry of this process's status in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def table(costs: dict[str, list[Cost]]) -> str:
    """Return rows of work, exponents, seconds and memory of the largest size."""
    rows = ["| work | from, to | exponent | of the last two | seconds | memory, MiB |", "|---|--:|--:|--:|--:|--:|"]
    for name, found in costs.items():
        ends = f"{found[0].work:,.0f}, {found[-1].work:,.0f}"
        slopes = f"{exponent(found):.2f} | {exponent(found[-2:]):.2f}"
        rows.append(f"| {name} | {ends} | {slopes} | {found[-1].seconds:.3g} | {found[-1].memory:.0f} |")
    return "\n".join(rows)


def figure(costs: dict[str, list[Cost]], path: Path) -> None:
    """Draw seconds over work, with a line of slope 1 through the last point of each."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = 5
    rows = -(-len(costs) // columns)
    drawn, axes = plt.subplots(
        rows, columns, figsize=(2.8 * columns, 2.2 * rows), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat[len(costs) :]:
        axis.set_axis_off()
    for axis, (name, found) in zip(axes.flat, costs.items(), strict=False):
        x, y = [each.work for each in found], [each.seconds for each in found]
        axis.loglog(x, y, "o-", color="tab:blue", markersize=4)
        axis.loglog(x, [y[-1] * each / x[-1] for each in x], ":", color="gray")
        axis.set_title(f"{name}: {exponent(found[-2:]):.2f}", fontsize=8)
        axis.tick_params(labelsize=7)
        for each in (axis.xaxis, axis.yaxis):
            each.set_minor_formatter(NullFormatter())
        axis.set_ylabel("seconds", fontsize=7)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def run(out: str = "results/scale", *, tiny: bool = False, only: str = "") -> None:
    """Measure all cases, print the table, and write it with the figure to the folder `out`.

    Args:
        out: folder of table.md and scale.png.
        tiny: the two smallest sizes of each case alone, each once.
        only: cases whose name contains this.
    """
    torch.set_num_threads(1)
    costs: dict[str, list[Cost]] = {}
    enough = 0.0 if tiny else ENOUGH
    for case in CASES:
        if only in case.name:
            chosen = case.tiny if tiny else case
            costs[case.name] = [measure(chosen, size, enough=enough) for size in chosen.sizes]
            shown = ", ".join(f"{cost.work:g}: {cost.seconds:.3g} s" for cost in costs[case.name])
            print(f"{case.name}: {shown}", flush=True)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table(costs) + "\n", encoding="utf-8")
    figure(costs, folder / "scale.png")
    print(table(costs))


if __name__ == "__main__":
    run_script(run)
