"""Every file in configs/ is documented, parsed, and run for two steps with configs/shrink.yaml."""

from __future__ import annotations

import importlib
import io
import itertools
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_guide import PUBLIC
from lightning_guide.cli import main
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.config_base import config_files

CONFIGS = Path(__file__).parent.parent / "configs"
# Files that only make sense on top of others.
PARTS = {
    "ddp.yaml": "digits/main.yaml",
    "diagnostics.yaml": "digits/main.yaml",
    "fsdp.yaml": "digits/main.yaml",
    "nodes.yaml": "digits/main.yaml",
    "motion/guidance.yaml": "motion/train.yaml",
    "particles.yaml": "digits/main.yaml",
    "posterior.yaml": "digits/main.yaml",
    "shrink.yaml": "digits/main.yaml",
    "fractal2d/report.yaml": "fractal2d/main.yaml",
}
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
BASES = [name for name in ALL if name.startswith("base/")]
GUIDANCES = [name for name in ALL if name.startswith(("guidance/", "training_free/"))]
# as cifar8/flow.yaml and cifar8/transformer.yaml, digits/parts.yaml and digits/classifier.yaml
SLOW = (
    *("cifar8/main.yaml", "cifar32/cpu.yaml", "cifar32/main.yaml"),
    *("digits/autoencoder.yaml", "digits/robust_classifier.yaml", "digits/sketch.yaml"),
)
# the others: test_configs_guidance.py, ..._training_free.py, ..._gradient.py, ..._edm2.py, ..._pretrained.py,
# test_search_refusals.py
ELSEWHERE = ("base/", "gradient/", "edm2/", "cifar32/edm1", "search/", "pretrained/")
FILES = [name for name in ALL if name not in GUIDANCES[1:] and not name.startswith(ELSEWHERE)]
PARTS[GUIDANCES[0]] = "digits/main.yaml"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Runs `lightning-guide WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *map(str, words)])
    main()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with data/cifar10/train-*.tar and test-*.tar of a few 32x32 images, and two finished runs."""
    for name, channels in (("digits", 1), ("cifar8", 3)):
        sizes = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": []}
        model = Preconditioned(EDM2UNet([channels, 8, 8], num_classes=10, **sizes))  # type: ignore[arg-type]
        store = SnapshotStore(tmp_path / f"runs/{name}/main/snapshots")
        store.save(model.state_dict(), images=8, sigma_rel=0.05, recipe=model.recipe, planned_images=8)
    (tmp_path / "data/cifar10").mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for shard in ("train-00000", "train-00001", "test-00000"):
        with tarfile.open(tmp_path / f"data/cifar10/{shard}.tar", "w") as tar:
            for i in range(20):
                image = io.BytesIO()
                Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [*PARTS, *SLOW])  # the others run
def test_config_is_parsed(
    name: str, shards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [CONFIGS / PARTS[name]] if name in PARTS else []
    words = [word for path in [*whole, CONFIGS / name] for word in ("-c", path)]
    with pytest.raises(SystemExit) as left:
        command(monkeypatch, "fit" if "report" not in name else "test", *words, "--print_config")
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {"trainer", "model", "data"} <= set(printed)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FILES if n not in PARTS]
)
def test_config_runs_two_steps(name: str, shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    words = ["-c", CONFIGS / name, "-c", CONFIGS / "shrink.yaml", "--data.batch_size", 4]
    words += ["--data.num_samples", 8] if name.startswith("sims/") else []
    command(monkeypatch, "fit", *words, "--trainer.default_root_dir", run)
    assert (run / "config.yaml").exists()
    assert list((run / "checkpoints").glob("step-000000002.ckpt"))
    assert list((run / "snapshots").glob("images-000000000008-*.safetensors"))
    assert list((run / "tensorboard").rglob("events.out.*"))


@pytest.mark.parametrize("name", ALL)
def test_config_begins_with_its_purpose_and_command(name: str) -> None:
    lines = (CONFIGS / name).read_text().splitlines()
    assert max(map(len, lines)) <= 120, f"{name}: {max(lines, key=len)}"
    comment = "".join(itertools.takewhile(lambda line: line.startswith("# "), lines))
    assert "`base: " in comment if name in BASES else "lightning-guide " in comment, f"{name} begins with {lines[0]}"


@pytest.mark.parametrize("name", ALL)
def test_config_spells_classes_by_their_short_names(name: str) -> None:
    exported = {each for package in map(importlib.import_module, PUBLIC) for each in package.__all__}
    dotted = re.findall(r"class_path: ((?:\w+\.)+[A-Z]\w+)", (CONFIGS / name).read_text())
    own = [path for path in dotted if path.partition(".")[0] in ("lightning_guide", "callbacks", "datamodules")]
    assert not [path for path in own if path.rpartition(".")[2] in exported]


def test_every_base_is_inherited() -> None:
    inherited = {file.resolve() for name in ALL for file in list(config_files(CONFIGS / name))[1:]}
    assert {(CONFIGS / name).resolve() for name in BASES} <= inherited


def test_config_of_a_new_data_set_is_short_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of configs/README.md."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (CONFIGS / "README.md").read_text(), re.DOTALL)
    assert len(example.splitlines()) < 25 and "class_path: ImageFolder" in example
    (tmp_path / "my_flowers.yaml").write_text(example.replace("configs/", f"{CONFIGS}/"))
    for label in range(5):
        folder = tmp_path / f"data/flowers/{label}"
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((40, 36, 3), 20 * label + i, dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    sizes = ["--model.denoiser.init_args.network.init_args.model_channels", 8, "--data.batch_size", 4]
    sizes += ["--data.heldout", 0.2]
    command(monkeypatch, "fit", "-c", "my_flowers.yaml", "-c", CONFIGS / "shrink.yaml", *sizes)
    assert list((tmp_path / "runs/flowers/snapshots").glob("images-000000000008-*.safetensors"))
    saved = yaml.safe_load((tmp_path / "runs/flowers/config.yaml").read_text())
    assert "base" not in saved and saved["model"]["init_args"]["label_dropout"] == 0.1
