"""Two nodes of one process equal one node of two processes: set by variables, SLURM or torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests import runs
from tests.processes import Processes
from tests.ranks import STEPS, options
from tests.runs import assert_same

TORCHRUN = """
from tests.test_ddp_nodes import on_node
import sys
on_node(sys.argv[1])
"""


def on_node(folder: str) -> None:
    """Run one of two nodes of one process each."""
    strategy = options(2)["strategy"]
    runs.full_run(folder, steps=STEPS, num_nodes=2, devices=1, strategy=strategy)


def by_variables(node: int) -> dict[str, str]:
    """Return environment variables that name one of two nodes."""
    return {"NODE_RANK": str(node), "LOCAL_RANK": "0"}


def by_slurm(node: int) -> dict[str, str]:
    """Return the environment variables that srun sets for one of two nodes."""
    task = {"PROCID": node, "NODEID": node, "LOCALID": 0, "NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1}
    job = {"JOB_ID": 1, "JOB_NAME": "test", "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    return {f"SLURM_{name}": str(value) for name, value in (task | job).items()}


@pytest.mark.parametrize("node_variables", [by_variables, pytest.param(by_slurm, marks=pytest.mark.slow)])
def test_two_nodes_of_one_process_equal_one_node_of_two(
    node_variables: Callable[[int], dict[str, str]], processes: Processes, pair: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [tmp_path / f"log.{node}" for node in range(2)]
    nodes = [common | node_variables(node) for node in range(2)]
    start = partial(processes.start, ("tests.test_ddp_nodes", "on_node"), folder=str(tmp_path))
    pids = [start(log, environment=node) for log, node in zip(logs, nodes, strict=True)]
    assert [processes.wait(pid) for pid in pids] == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))


@pytest.mark.slow
def test_two_agents_of_torchrun(pair: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    agents = [
        subprocess.Popen([*command, "--node-rank", node, str(script), str(tmp_path)], env=environment) for node in "01"
    ]
    assert [agent.wait(300) for agent in agents] == [0, 0]
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))
