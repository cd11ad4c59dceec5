"""A run made before the packages were reorganized still loads, continues and is sampled; old class paths still resolve.

`tests/data/run_ae12ae3` was trained for 8 steps by version 0.1.0 at commit ae12ae3; the numbers here come from that
version, too. `tests/data/class_paths_ae12ae3.txt` lists the public classes it had.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.parser import update_paths
from lightning_guide.utils.recipe import current_path, find_class

DATA = Path(__file__).parent / "data"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

# Sum of the norms of all floating tensors of each average.
NORMS = {
    (64, 0.05): 220.2814672326569,
    (64, 0.10): 220.27736038334703,
    (128, 0.05): 220.36857384125733,
    (128, 0.10): 220.36007888822766,
    (192, 0.05): 220.4336756491224,
    (192, 0.10): 220.42022352226394,
}
# Mean distance of four samples to their nearest training images, and network calls, by evaluation.
NEAREST = {
    "unguided": (6.547264575958252, 7),
    "autoguidance": (6.516130447387695, 14),
    "pag": (6.557141304016113, 14),
    "apg": (6.547077655792236, 14),
    "energy": (6.559216022491455, 7),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the stored run."""
    return Path(shutil.copytree(DATA / "run_ae12ae3", tmp_path / "run"))


def norms(run: Path) -> dict[tuple[int, float], float]:
    """`NORMS` of the averages in `run`."""
    store = SnapshotStore(run / "snapshots")
    tensors = {(entry.images, entry.sigma_rel): store.load(entry)[0].values() for entry in store.entries()}
    return {
        key: sum(float(value.double().norm()) for value in values if value.is_floating_point())
        for key, values in tensors.items()
    }


def test_old_run_continues_to_the_same_weights(run: Path) -> None:
    main(["fit", "-c", f"{run}/config.yaml", f"--trainer.default_root_dir={run}", "--trainer.max_steps=12", *QUIET])
    assert norms(run) == pytest.approx(NORMS, rel=1e-6)


def test_old_run_is_sampled_under_its_guidances(run: Path) -> None:
    report = f"{{class_path: callbacks.MetricsReport, init_args: {{folder: {run}}}}}"
    where = ["-c", f"{run}/config.yaml", f"--trainer.default_root_dir={run}"]
    main(["test", *where, f"--trainer.callbacks+={report}", *QUIET])
    values = json.loads((run / "metrics.json").read_text())
    for name, (nearest, calls) in NEAREST.items():
        assert values[name]["nearest"] == pytest.approx(nearest, rel=1e-3)
        assert values[name]["nfe"] == calls


def test_old_snapshots_build_their_denoiser() -> None:
    store = SnapshotStore(DATA / "run_ae12ae3" / "snapshots")
    guider = store.guider(images="1/1", sigma_rel=0.1)
    assert type(guider).__name__ == "Preconditioned" and guider.data_shape == (1, 8, 8)


@pytest.mark.parametrize("path", (DATA / "class_paths_ae12ae3.txt").read_text().split())
def test_old_class_path_resolves(path: str) -> None:
    assert isinstance(find_class(current_path(path)), type)


def test_saved_config_names_public_paths(run: Path) -> None:
    paths = yaml.safe_load((run / "config.yaml").read_text())
    assert paths["model"]["class_path"] == "lightning_guide.modules.diffusion.DiffusionModule"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lightning_guide.guidance.energy.Window", "SigmaWindow"),
        ("lightning_guide.guidance.energy.window.Window", "SigmaWindow"),
        ("callbacks.density_map.Window", "ViewWindow"),
        ("lightning_guide.guidance.energy.Goal", "Goal"),
        ("lightning_guide.optimisation.Goal", "GoalTarget"),
        ("lightning_guide.guidance.energy.Quadratic", "SquaredDistance"),
        ("lightning_guide.objectives.Quadratic", "Quadratic"),
    ],
)
def test_old_name_of_two_classes_resolves_to_the_right_one(path: str, name: str) -> None:
    assert find_class(path).__name__ == name


def test_old_path_of_a_function_resolves() -> None:
    assert current_path("lightning_guide.modules.models.pretrained") == "lightning_guide.runs.pretrained"


def test_old_names_of_classes_and_arguments_are_updated_in_parsed_configs() -> None:
    old = {"class_path": "datamodules.latents.Latents", "init_args": {"pictures": {"class_path": "Pictures"}}}
    new = {"class_path": "datamodules.Latents", "init_args": {"images": {"class_path": "ImageFolder"}}}
    assert update_paths({"data": [old], "text": "Pictures"}) == {"data": [new], "text": "Pictures"}
