"""Common settings and fixtures: threads, order, a headless backend, no downloads, a global state that is kept.

`TEST_THREADS=3 pytest` computes with three threads, `pytest --shuffle 7` runs files, and the tests of each file, in the
random order of seed 7.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

gc.disable()  # until everything is imported and collected
# Set in the environment before torch and matplotlib are imported, so that child processes inherit it.
# One thread is steadier and no slower for small networks, and two ranks do not compete for two cores.
os.environ["OMP_NUM_THREADS"] = os.environ.get("TEST_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LIGHTNING_GUIDE_CACHE"] = os.path.join(tempfile.gettempdir(), "lightning_guide_tests")

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from lightning_guide.snapshots import SnapshotStore  # noqa: E402
from tests.processes import Processes  # noqa: E402

LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning_guide", "PIL", "matplotlib")

matplotlib.use("Agg")
torch.set_warn_always(True)  # else a warning is one of the first test that causes it, in whatever order they run
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --shuffle."""
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files, and tests of a file, in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests; those of one file stay together and share its fixtures."""
    if (seed := config.getoption("shuffle")) is not None:
        places = random.Random(seed)
        of_file = {path: places.random() for path in dict.fromkeys(item.path for item in items)}
        order = {item: (of_file[item.path], places.random()) for item in items}
        items.sort(key=order.__getitem__)


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests make, not at half a million objects of imported modules."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the garbage collector look at everything again at the end of the process."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Seed torch's global generator, which initializes networks, and undo changes of global settings after the test."""
    torch.manual_seed(0)
    environment, folder, paths = dict(os.environ), os.getcwd(), list(sys.path)
    threads, dtype, exact = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = paths
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(exact)
    torch.set_grad_enabled(True)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # which counts recompilations per line of code, not per test


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """An empty snapshot store."""
    return SnapshotStore(tmp_path / "snapshots")


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Server of forked processes that start in milliseconds, for tests that kill processes or need two ranks."""
    server = Processes()
    yield server
    server.close()


@pytest.fixture(scope="session")
def pair(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks: 8 steps of 2 micro-steps of 2 x 4 images."""
    from tests.ranks import TRAIN

    folder = tmp_path_factory.mktemp("runs") / "pair"
    folder.mkdir()
    processes.call_ranks(2, TRAIN, folder / "log", folder=str(folder), world=2)
    return folder


@pytest.fixture(scope="session")
def search_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, averages of two widths at 20 times, and search.yaml; searches do not change it."""
    from tests.searches import finished_run  # the command line takes seconds to import

    folder = tmp_path_factory.mktemp("search")
    finished_run(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random pipeline by its name in `tests.tiny_pipelines`, written at first use."""
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    from tests.tiny_pipelines import write_pipeline

    return functools.cache(lambda name: write_pipeline(name, tmp_path_factory.mktemp("pipelines") / name))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(point, number of missing blocks) of every call of a search that draws samples."""
    from lightning_guide.search.blocks import SampledBlocks

    calls: list[tuple[str, int]] = []
    before = SampledBlocks.draw

    def draw(self: SampledBlocks, place: Any, blocks: Any) -> None:
        if missing := len(set(blocks) - self.drawn(place)):
            calls.append((self.space.name(place), missing))
        before(self, place, blocks)

    monkeypatch.setattr(SampledBlocks, "draw", draw)
    return calls
