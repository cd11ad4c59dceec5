"""CPU seconds until the command line gives its first answer, now and at an earlier revision.

Help, the version, typing errors and `import lightning_guide`, each in a process of its own, best of several. The goal
is that none of them imports torch, and that each takes at most a second; and that a fit of one step, from its start to
its end, takes at most ten.

    python -m scripts.benchmarks.startup --before ae12ae3
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOT_DIR = "--trainer.default_root_dir"  # gets a temporary folder
WORDS = {
    "import lightning_guide": None,
    "--help": ["--help"],
    "--version": ["--version"],
    "misspelt command": ["fitt"],
    "misspelt option": ["fit", "-c", "configs/digits/main.yaml", "--modle.x", "1"],
    "misspelt option of the trainer": ["fit", "-c", "configs/digits/main.yaml", "--trainer.max_stepz", "1"],
    "misspelt option below": ["fit", "-c", "configs/digits/main.yaml", "--model.learning_rat.peak", "1"],
    "wrong value": ["fit", "-c", "configs/digits/main.yaml", "--model.label_dropout", "often"],
    "missing config": ["fit", "-c", "missing.yaml"],
    "fit --help": ["fit", "--help"],
    "gallery --help": ["gallery", "--help"],
    "fit --print_config": ["fit", "-c", "configs/digits/main.yaml", "-c", "configs/posterior.yaml", "--print_config"],
    "fit of one step": ["fit", "-c", "configs/digits/small.yaml", "--trainer.max_steps", "1", f"{ROOT_DIR}="],
}


def seconds(words: list[str] | None, folder: Path) -> float:
    """Return the CPU seconds, user and system, of one process of the checkout in `folder`."""
    code = "import lightning_guide" if words is None else "from lightning_guide.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as run:
        subprocess.run(
            [sys.executable, "-c", code, *(word + run if word == f"{ROOT_DIR}=" else word for word in words or [])],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            capture_output=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Return the smallest time of each call."""
    return {name: min(seconds(words, folder) for _ in range(repeats)) for name, words in WORDS.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", help="a git revision to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    columns = {"now": measure(ROOT, arguments.repeats)}
    if arguments.before:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", arguments.before], cwd=ROOT, check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            columns = {arguments.before: measure(Path(folder), arguments.repeats)} | columns
    width = max(map(len, WORDS))
    print(f"{'CPU seconds':<{width}} " + " ".join(f"{name:>12}" for name in columns))
    for name in WORDS:
        print(f"{name:<{width}} " + " ".join(f"{column[name]:12.2f}" for column in columns.values()))


if __name__ == "__main__":
    main()
