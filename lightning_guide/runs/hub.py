"""Export of a model as safetensors with a JSON config, and exchange with the Hugging Face Hub.

`model.safetensors` holds the plain state dict; `config.json` the recipe of the denoiser (class and arguments), the
images it has seen, the width of its average, and which tensors are buffers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_guide import __version__
from lightning_guide.denoiser import Denoiser
from lightning_guide.runs.models import newest_images, open_snapshots
from lightning_guide.runs.writing import check_new, write_run
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import atomic
from lightning_guide.utils.modules import persistent_buffers
from lightning_guide.utils.needs import check_writable
from lightning_guide.utils.recipe import build
from lightning_guide.utils.terminal import counted

__all__ = ["export", "pull", "push", "read_export"]


FORMAT = "lightning-guide model 1"


def export(run: str, folder: str, *, images: int | float | str | None = None, sigma_rel: float = 0.05) -> None:
    """Write one average of a run as `FOLDER/model.safetensors` and `FOLDER/config.json`.

    Args:
        run: folder of the run.
        folder: where they go.
        images: age of the model; default its newest snapshot.
        sigma_rel: width of its average, stored or rebuilt.

    Raises:
        ValueError: if the run has no such snapshot, or the folder holds a model already.
        OSError: if a file cannot be written.
    """
    age = _write(run, Path(folder), images, sigma_rel)
    print(f"sigma_rel {sigma_rel:g} after {counted(age, 'image')}: {Path(folder) / 'model.safetensors'}")


def _write(run: str, target: Path, images: int | float | str | None, sigma_rel: float) -> int:
    """Write both files, the weights last; returns the age of the model."""
    if (target / "model.safetensors").exists():
        raise ValueError(f"{target} already holds a model; expected another folder")
    check_writable(target, "the export")
    store = open_snapshots(run)
    age = newest_images(store) if images is None else store.resolve_images(images)
    model = store.guider(images=age, sigma_rel=sigma_rel)
    description = {
        "format": FORMAT,
        "recipe": model.recipe,
        "images": age,
        "sigma_rel": sigma_rel,
        "planned_images": store.planned_images,
        "buffers": persistent_buffers(model),
        "code_version": __version__,
    }
    with atomic(target / "config.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic(target / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    return age


def read_export(folder: str | Path) -> tuple[Denoiser, dict[str, Any]]:
    """The model of an exported folder with its weights, and its `config.json`.

    Raises:
        ValueError: naming the file, if one is missing or damaged, or the weights do not fit the recipe.
    """
    config, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            wrong = f"{path} does not exist{did_you_mean(path)}"
            raise ValueError(f"{wrong}; expected a folder that `lightning-guide export` has written")
    try:
        description = json.loads(config.read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']!r}; expected {FORMAT!r}")
        recipe, _ = description["recipe"], (int(description["images"]), float(description["sigma_rel"]))
    except KeyError as error:
        raise ValueError(f"{config} does not describe a model: it has no {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config} does not describe a model: {error}") from None
    model = build(recipe)
    if not isinstance(model, Denoiser):
        raise ValueError(f"{config} describes a {type(model).__name__}; expected a denoiser")
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights} does not fit {config}: {' '.join(str(error).split())[:200]}") from None
    return model, description


def push(run: str, repo: str, *, images: int | float | str | None = None, sigma_rel: float = 0.05) -> None:
    """Export one average of a run to the Hugging Face Hub, into a private repository unless it exists.

    Args:
        run: folder of the run.
        repo: OWNER/NAME; the token is that of `hf auth login`.
        images: age of the model; default its newest snapshot.
        sigma_rel: width of its average.

    Raises:
        ValueError: if the run has no such snapshot, or the upload is rejected.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        age = _write(run, Path(folder), images, sigma_rel)
        api = HfApi()
        try:
            api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Exported from {Path(run).name}")
        except Exception as error:  # network, token, name, ...
            raise ValueError(f"the hub did not take {run} as {repo!r}: {' '.join(str(error).split())[:300]}") from None
    print(f"sigma_rel {sigma_rel:g} after {counted(age, 'image')}: {repo} on the hub")


def pull(repo: str, run: str, *, revision: str | None = None) -> None:
    """Make a run of a model from the Hugging Face Hub, or from a folder that was exported.

    Args:
        repo: OWNER/NAME, or the path of a folder.
        run: folder of the new run.
        revision: branch, tag or commit; default the newest.

    Raises:
        ValueError: if the run exists, or there is no such model.
    """
    from huggingface_hub import snapshot_download

    check_new(run)
    folder = repo
    if not Path(repo).is_dir():
        try:
            folder = snapshot_download(repo, revision=revision, allow_patterns=["config.json", "model.safetensors"])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{repo!r} is neither a local folder nor a model of the hub: {reason}") from None
    model, description = read_export(folder)
    path = write_run(
        run,
        model,
        model.state_dict(),
        images=description["images"],
        sigma_rel=description["sigma_rel"],
        planned_images=description.get("planned_images"),
    )
    print(f"sigma_rel {description['sigma_rel']:g} after {counted(description['images'], 'image')}: {path}")
