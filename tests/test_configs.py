"""Every file in configs/ is parsed, and run for two steps with configs/shrink.yaml."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_guide.cli import main
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.snapshots import SnapshotStore

CONFIGS = Path(__file__).parent.parent / "configs"
# Files that only make sense on top of others.
PARTS = {
    "ddp.yaml": "digits/main.yaml",
    "diagnostics.yaml": "digits/main.yaml",
    "fsdp.yaml": "digits/main.yaml",
    "nodes.yaml": "digits/main.yaml",
    "motion/guidance.yaml": "motion/train.yaml",
    "shrink.yaml": "digits/main.yaml",
    "fractal2d/report.yaml": "fractal2d/main.yaml",
}
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
GUIDANCES = [name for name in FILES if name.startswith(("guidance/", "training_free/"))]
# as digits/parts.yaml and digits/classifier.yaml
SLOW = ("digits/autoencoder.yaml", "digits/robust_classifier.yaml", "digits/sketch.yaml")
# the others: test_configs_guidance.py, ..._energy.py, ..._gradient.py, ..._edm2.py, test_search_refusals.py
ELSEWHERE = ("gradient/", "edm2/", "cifar32/edm1", "search/")
FILES = [name for name in FILES if name not in GUIDANCES[1:] and not name.startswith(ELSEWHERE)]
PARTS[GUIDANCES[0]] = "digits/main.yaml"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Runs `lightning-guide WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["lightning-guide", *map(str, words)])
    main()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with data/cifar10/train-*.tar and test-*.tar of a few 32x32 pictures, and two finished runs."""
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
                picture = io.BytesIO()
                Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FILES)
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
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first.startswith("# "), f"{name} does not begin with a comment that says what it is for"


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
