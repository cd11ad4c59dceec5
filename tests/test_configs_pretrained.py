"""configs/pretrained/: each is parsed and run with a tiny random model of the same classes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.utils.images import encode_png

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
pytestmark = [
    # random networks: samples diverge, latents have any scale, and tiny models differ little
    pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds"),
    pytest.mark.filterwarnings("ignore:the latents in"),
    pytest.mark.filterwarnings("ignore:.*pushes a model away from itself"),
]

FOLDER = Path(__file__).parent.parent / "configs/pretrained"
Tiny = Callable[[str], Path]
# on top of which config, and of which tiny pipeline
PARTS = {
    "sd_guidances": "sd15",
    "sdxl_guidances": "sdxl",
    "sd15_autoguidance": "sd15",
    "metrics": "sd15",
    "mdm_guidances": "mdm",
    "mdm_goal": "mdm",
}
TINY = {"sd15": "sd", "sdxl": "sdxl", "if": "if", "dit": "dit", "sd35_medium": "sd3"}  # of others: sd
COMMANDS = {
    "sd15_captions": "fit",
    "sd15_lora": "fit",
    "sd15_fine_tune": "fit",
    "sd15_reward": "test",
    "sd15_reward_lora": "fit",
    "sd15_sims": "fit",
}  # of others: validate
ALL = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def words(name: str) -> list[str]:
    """The options -c of a config."""
    return [word for each in (PARTS.get(name), name) if each for word in ("-c", str(FOLDER / f"{each}.yaml"))]


def with_source(value: Any, source: str) -> Any:
    """Settings with another `source` or `path` wherever there is one, and 4 steps of samplers."""
    if isinstance(value, list):
        return [with_source(each, source) for each in value]
    if not isinstance(value, dict):
        return value
    there = {"source": source, "path": source.removeprefix("diffusers:"), "grid": 4}
    return {key: there[key] if key in there else with_source(each, source) for key, each in value.items()}


def tiny_config(command: str, name: str, source: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The config with the model in the folder `source`, on the CPU."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([command, *words(name), "--print_config"])
    assert left.value.code == 0
    settings = with_source(yaml.safe_load(capsys.readouterr().out), f"diffusers:{source}")
    settings["trainer"] |= {"accelerator": "cpu", "default_root_dir": str(run), "enable_progress_bar": False}
    data = settings["data"]["init_args"]
    data |= {"cache": str(run / "cache")} if "prompts" in data else {}
    data |= {"data_shape": [4, 8, 8]} if "data_shape" in data and data["vae"] else {}
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ALL)
def test_config_is_parsed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([COMMANDS.get(name, "validate"), *words(name), "--print_config"])
    assert left.value.code == 0
    settings = yaml.safe_load(printed := capsys.readouterr().out)
    assert {"trainer", "model", "data"} <= set(settings)
    if name.endswith("_guidances") and name != "mdm_guidances":  # the published weight of CFG
        assert ("7.5" in printed) == (name == "sd_guidances")
        assert settings["model"]["init_args"]["guidances"]["cfg_pag"]["init_args"]["weights"][1] == 4


EVALUATIONS = {
    "sd15": ["cfg"],
    "sdxl": ["cfg"],
    "sd_guidances": "cfg plain_cfg pag cfg_pag seg sag icg apg cfg_pp cads cfg_nag cfg_pladis compressed".split(),
    "sdxl_guidances": "cfg plain_cfg pag cfg_pag seg sag icg apg cfg_pp cads cfg_nag cfg_pladis compressed".split(),
    "sd35_medium": ["cfg", "cfg_skip"],
    "sd15_autoguidance": ["cfg", "autoguidance", "blend"],
    "dit": ["icg", "cfg"],
    "if": ["blend", "cfg", "autoguidance"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dit" else [pytest.mark.slow]) for name in EVALUATIONS]
)
def test_every_evaluation_draws(
    name: str, tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_pipeline(TINY[PARTS.get(name, name)])
    main(["validate", "-c", str(tiny_config("validate", name, source, tmp_path / "run", capsys))])
    results = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert list(results) == EVALUATIONS[name] and all(each["samples"] >= 4 for each in results.values())
    assert (tmp_path / "run/gallery/gallery.png").is_file() and (tmp_path / "run/report.html").is_file()


def test_prediction_writes_images(tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config("predict", "sd15", tiny_pipeline("sd"), tmp_path / "run", capsys)
    main(["predict", "-c", str(config)])
    assert len(list((tmp_path / "run/samples").rglob("*.png"))) == 4
    assert "red boat" in next((tmp_path / "run/samples").rglob("prompts.csv")).read_text()


def encode_captioned(source: Path) -> None:
    """Captioned images in `data/images` and their latents in `data/latents`, by the commands of the docs."""
    pixels = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        Path("photos", part).mkdir(parents=True)
        for i in range(8):
            image = encode_png(torch.randint(256, (3, 16, 16), generator=pixels).to(torch.uint8))
            Path(f"photos/{part}/{i:04d}.png").write_bytes(image)
            Path(f"photos/{part}/{i:04d}.txt").write_text(f"number {i}")
        Path("data/images").mkdir(parents=True, exist_ok=True)
        command = ["tar", "--sort=name", "-cf", f"data/images/{part}-00000.tar", "-C", f"photos/{part}", "."]
        subprocess.run(command, check=True)
    vae = ["--vae", "DiffusersVAE", "--vae.path", str(source), "--vae.subfolder", "vae", "--vae.lowest", "-1"]
    main(["encode", "data/images/*.tar", "data/latents", "--size", "16", *vae, "--texts", str(source)])


def train_captioned(name: str, source: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 steps of a training config, with three evaluations at the end."""
    run.parent.mkdir()
    sizes = ["--data.token_channels", "16", "--data.batch_size", "4", "--trainer.max_steps", "8"]
    sizes += ["--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1"]
    main(["fit", "-c", str(tiny_config("fit", name, source, run, capsys)), *sizes])
    results = json.loads((run / "report/metrics.json").read_text())
    assert list(results) == ["unguided", "cfg", "autoguidance", "published"]
    assert len(list((run / "snapshots").glob("*.safetensors"))) >= 2


@pytest.mark.slow
def test_low_rank_fine_tuning_and_the_guiders_of_the_docs(
    tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/fine_tuning.md, from captioned images on; then every guider of docs/text_to_image.md."""
    monkeypatch.chdir(tmp_path)
    source = tiny_pipeline("sd")
    encode_captioned(source)
    train_captioned("sd15_lora", source, tmp_path / "runs/lora", capsys)
    prompts = ["--data.source", str(source), "--data.prompts", "[a boat in my style]"]
    main(["predict", "runs/lora", "--data", "Prompts", *prompts])
    assert list(Path("runs/lora/samples").rglob("*.png"))
    main(["export", "runs/lora", "loras/mine", "--form", "lora", "--dtype", "float16"])
    assert Path("loras/mine/pytorch_lora_weights.safetensors").is_file()
    (block,) = re.findall(r"```yaml\n(.*?)```", (FOLDER.parents[1] / "docs/text_to_image.md").read_text(), re.DOTALL)
    guiders = with_source(yaml.safe_load(block), f"diffusers:{source}")
    (tmp_path / "guiders.yaml").write_text(yaml.safe_dump(guiders, sort_keys=False))
    main(
        ["validate", "-c", str(tiny_config("validate", "sd15", source, tmp_path / "run", capsys)), "-c", "guiders.yaml"]
    )
    results = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert list(results) == ["cfg", *guiders["model"]["init_args"]["guidances"]]


@pytest.mark.slow
def test_whole_fine_tuning_and_its_pipeline(
    tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.chdir(tmp_path)
    source = tiny_pipeline("sd")
    encode_captioned(source)
    train_captioned("sd15_fine_tune", source, tmp_path / "runs/whole", capsys)
    main(["export", "runs/whole", "models/mine", "--form", "diffusers", "--link", "true"])
    pipeline = StableDiffusionPipeline.from_pretrained("models/mine", local_files_only=True)
    assert any(
        not torch.equal(weight, before)
        for weight, before in zip(
            pipeline.unet.parameters(),
            lg.load(f"diffusers:{source}").get_submodule("network.model").parameters(),
            strict=True,
        )
    )


@pytest.mark.slow
def test_the_goals_of_the_reward_experiment(
    tiny_pipeline: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("test", "sd15_reward", tiny_pipeline("sd"), tmp_path / "run", capsys)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["objective"]["init_args"]["backbone"]["init_args"] = {"size": 32}  # random weights
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    main(["test", "-c", str(config), "--model.sampling.num_samples", "6", "--model.num_rounds", "3"])
    rounds = [json.loads(line) for line in (tmp_path / "run/rounds/history.jsonl").read_text().splitlines()]
    goals = {f"{name}_goal_{goal}" for name in ("objective", "distance") for goal in (2, 4, 10)}
    assert len(rounds) == 3 and goals <= rounds[0].keys() and rounds[0]["distance"] == 0 < rounds[2]["distance"]
    assert all(each["nfe"] == 10 for each in rounds)  # PLMS calls once more than it steps, both models of CFG
    page = (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "run/report/rounds.png").is_file() and "Time of a round" in page
    assert [page.count(f"<td>{name}</td>") for name in ("unguided", "guided")] == [1, 1]


def test_every_config_is_tried() -> None:
    # test_pretrained_end_to_end.py, test_configs_pretrained_guided.py, test_configs_mdm.py, test_configs_captions.py
    elsewhere = {"metrics", "celebahq", "adm", "mdm", "mdm_guidances", "mdm_goal"}
    assert set(ALL) == {*EVALUATIONS, *COMMANDS, *elsewhere}
