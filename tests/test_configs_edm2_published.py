"""configs/edm2/published/: the numbers of the papers, and one run with tiny snapshots in the published format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.utils.files import read_yaml
from tests.persistent_pickles import published_modules
from tests.test_runs_edm2_import import direct, write

FOLDER = Path(__file__).parent.parent / "configs/edm2/published"
# Karras et al. 2024, arXiv:2312.02696 and (autoguidance) 2406.02507: weight, snapshots of the model and the guider
CFG = {
    "img512-xs-fid": (1.4, "xs-2147483-0.045"),
    "img512-xs-fd-dinov2": (1.7, "xs-2147483-0.150"),
    "img512-s-fid": (1.4, "s-2147483-0.025"),
    "img512-s-fd-dinov2": (1.9, "s-2147483-0.085"),
    "img512-m-fid": (1.2, "m-2147483-0.030"),
    "img512-m-fd-dinov2": (2.0, "m-2147483-0.015"),
    "img512-l-fid": (1.2, "l-1879048-0.015"),
    "img512-l-fd-dinov2": (1.7, "l-1879048-0.035"),
    "img512-xl-fid": (1.2, "xl-1342177-0.020"),
    "img512-xl-fd-dinov2": (1.7, "xl-1342177-0.030"),
    "img512-xxl-fid": (1.2, "xxl-0939524-0.015"),
    "img512-xxl-fd-dinov2": (1.7, "xxl-0939524-0.015"),
    "img64-s-fid": (1.15, "s-1073741-0.030"),
    "img64-s-fd-dinov2": (1.85, "s-1073741-0.040"),
}
AUTOGUIDANCE = {
    "img512-s-fid": (2.1, "s-2147483-0.070", "xs-0134217-0.125"),
    "img512-s-fd-dinov2": (2.45, "s-2147483-0.120", "xs-0134217-0.165"),
    "img512-xxl-fid": (2.05, "xxl-0939524-0.075", "m-0268435-0.155"),
    "img512-xxl-fd-dinov2": (2.3, "xxl-0939524-0.130", "m-0268435-0.205"),
    "img64-s-fid": (1.7, "s-1073741-0.045", "xs-0134217-0.110"),
    "img64-s-fd-dinov2": (2.2, "s-1073741-0.105", "xs-0134217-0.175"),
}


def settings(guidance: Any, model: Any, kind: str) -> tuple[Any, ...]:
    """(weight, model, guider) as in the tables."""
    arguments = guidance["init_args"]
    names = [
        each["init_args"]["source"].removeprefix(f"edm2:models/edm2-{kind}-").removesuffix(".pkl")
        for each in (arguments.get("positive", model), arguments["guider"])
    ]
    return arguments["weight"], *names


def test_every_config_is_the_published_one() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CFG)
    for name, (weight, snapshot) in CFG.items():
        model, kind = read_yaml(FOLDER / f"{name}.yaml")["model"]["init_args"], name.split("-")[0]
        loops = {key: each["guidance"] for key, each in model["evaluations"].items()}
        uncond = f"xs-uncond-2147483-{snapshot.rpartition('-')[2]}"  # both averages have one width
        assert settings(loops["cfg"], model["denoiser"], kind) == (weight, snapshot, uncond)
        assert ("autoguidance" in loops) == (name in AUTOGUIDANCE)
        if name in AUTOGUIDANCE:
            assert settings(loops["autoguidance"], model["denoiser"], kind) == AUTOGUIDANCE[name]
        assert model["prediction"]["guidance"] == next(iter(loops.values()))
        assert model["prediction"]["sampler"] == {"class_path": "Heun", "init_args": {"grid": 32}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Total length of")  # NoData
@pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds")
@pytest.mark.filterwarnings("ignore:.*away from itself")
def test_a_shrunken_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of 8x8 pixels in place of 64x64; the guider of CFG has no labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    names = ("s-1073741-0.045", "xs-0134217-0.110", "s-1073741-0.030", "xs-uncond-2147483-0.030")
    with published_modules():
        for name in names:
            write(tmp_path / f"models/edm2-img64-{name}.pkl", direct(0 if "uncond" in name else 4))
    loop = {"num_samples": 2}
    few = {
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False},
        "model": {"init_args": {"prediction": loop, "evaluations": {"autoguidance": loop, "cfg": loop}}},
        "data": {"class_path": "NoData", "init_args": {"data_shape": [3, 8, 8], "num_classes": 4}},
    }
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(few))
    main(["validate", "-c", str(FOLDER / "img64-s-fid.yaml"), "-c", str(tmp_path / "few.yaml")])
    assert "validate has ended" in capsys.readouterr().out
