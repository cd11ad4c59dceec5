"""The command import: a run of a published model, with a config that samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.clipped import Clipped
from lightning_guide.objectives.humanml3d import read_moments
from lightning_guide.preconditioning import Consistency, Preconditioned
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.mdm import FRAMES
from lightning_guide.pretrained.prompts import read_prompts
from lightning_guide.pretrained.schedulers import ScheduledSampling
from lightning_guide.pretrained.source import Pretrained
from lightning_guide.runs.edm2_import import import_snapshot
from lightning_guide.runs.writing import check_new, report_callbacks, write_config, write_run
from lightning_guide.utils.scalars import check_whole

__all__ = ["import_model"]

# weights of classifier-free guidance with which models were published; 1: it is part of the network
WEIGHTS = {
    "StableDiffusionPipeline": 7.5,
    "StableDiffusionControlNetPipeline": 7.5,
    "StableDiffusionXLPipeline": 5.0,
    "StableDiffusionXLControlNetPipeline": 5.0,
    "StableDiffusion3Pipeline": 7.0,
    "FluxPipeline": 1.0,
    "PixArtAlphaPipeline": 4.5,
    "PixArtSigmaPipeline": 4.5,
    "IFPipeline": 7.0,
    "DiTPipeline": 4.0,
}
# kinds of files whose models denoise latents of Stable Diffusion's autoencoder, scaled by 0.18215
_STABLE_DIFFUSION = {
    "vae": {"class_path": "DiffusersVAE", "init_args": {"path": "stabilityai/sd-vae-ft-mse", "lowest": -1.0}},
    "mean": [0.0] * 4,
    "std": [1 / (2 * 0.18215)] * 4,
}
LATENTS: dict[str, dict[str, Any]] = {"dit": _STABLE_DIFFUSION, "sit": _STABLE_DIFFUSION}
FILE_WEIGHTS = {"dit": 4.0, "sit": 4.0, "mdm": 2.5}  # EDM and ADM have no null class
# Heun's steps diverge from the first levels of discrete models and of flows
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "edm": ("Heun", {"grid": 32}),
    "mdm": ("DDIM", {"grid": 50, "eta": 1.0}),
}
PROMPTS = ("a photograph of a cat in the snow", "an oil painting of a harbor at dawn")
MOTIONS = ("a person walks forward", "a person jogs in a circle")


def import_model(
    kind: Literal["diffusers", "edm2", "edm", "adm", "dit", "sit", "mdm"],
    source: str,
    run: str,
    *,
    images: int | None = None,
    sigma_rel: float | None = None,
    num_steps: int | None = None,
    prompts: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    frames: int | None = None,
    negative_prompt: str | None = None,
    controlnet: str | None = None,
    control_image: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    offload: bool = False,
    copy: bool = False,
) -> None:
    """Make a run of a published model, for predict, validate or as a guider; nothing in its files is executed.

    The run refers to the weights where they are. EDM2 snapshots are copied, with their age and width.

    Args:
        kind: what SOURCE is; diffusers: a folder written by it, or a name on the Hugging Face hub.
        source: folder, file or name.
        run: folder of the new run.
        images: edm2: age of the snapshot in images; default: from the file name.
        sigma_rel: edm2: relative width of its average; default: likewise.
        num_steps: steps of the sampler; default: 50, of consistency models 2.
        prompts: text file with one prompt a line, for models that read texts; the config can be edited.
        mean: mdm: npy file of the means of the motion features, by which its data were normalized.
        std: mdm: npy file of their standard deviations.
        frames: mdm: length of a motion, 20 a second; default: 196.
        negative_prompt: text that is "no condition" instead of the model's own.
        controlnet: folder, or name on the hub, of a ControlNet beside the model; pipelines with one need none.
        control_image: file of the control image, the same for all samples.
        revision: branch, tag or commit on the hub.
        variant: files such as "fp16", which some folders hold beside others.
        dtype: precision of the network.
        offload: keep the weights on the CPU, and move each layer to the device while it runs: slow, in little memory.
        copy: store the weights in the run instead.

    Raises:
        ValueError: naming what is missing or not supported, or if the run exists.
    """
    if kind == "edm2":
        others = {"num_steps": num_steps, "prompts": prompts, "negative_prompt": negative_prompt, "revision": revision}
        others |= {"variant": variant, "dtype": None if dtype == "float32" else dtype}
        others |= {"controlnet": controlnet, "control_image": control_image, "offload": offload or None}
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"{name} is {value}, which the import of EDM2 snapshots does not have; expected none")
        import_snapshot("edm2", source, run, images=images, sigma_rel=sigma_rel)
        return
    check_new(run)
    if images is not None or sigma_rel is not None:
        raise ValueError(f"images and sigma_rel are of EDM2 snapshots; {kind} models have none")
    if (Path(run) / "config.yaml").exists():
        raise ValueError(f"{run} already holds a run; expected the folder of a new one")
    if controlnet is not None and control_image is None:
        raise ValueError(f"the ControlNet {controlnet} needs a control image; expected its file as control_image")
    if offload and copy:
        raise ValueError("offload is for weights that stay where they are; expected copy or offload, not both")
    place = _absolute(source)
    given: dict[str, Any] = {"revision": revision, "variant": variant, "negative_prompt": negative_prompt}
    given["offload"] = offload
    control = {"source": controlnet, "image": control_image}
    given["controlnet"] = {key: _absolute(each) for key, each in control.items() if each is not None}
    arguments: dict[str, Any] = {"source": f"{kind}:{place}"} | {key: each for key, each in given.items() if each}
    arguments |= {} if dtype == "float32" else {"dtype": dtype}
    if num_steps is not None:
        check_whole(num_steps, "num_steps", least=1)
    texts = None if prompts is None else read_prompts(prompts)
    motion = _motion_data(kind, mean, std, frames, texts)
    if motion:
        arguments["data_shape"] = [len(read_moments(motion["mean"], motion["std"])[0]), motion["frames"]]
    model = Pretrained(**arguments)
    if texts is not None and not model.token_channels:
        raise ValueError(f"{kind}:{place} reads no texts; expected no prompts")
    published = {"class_path": "lightning_guide.pretrained.Pretrained", "init_args": arguments}
    if kind == "diffusers":
        folder = DiffusersFolder(place, revision=revision, variant=variant)
        config = _diffusers_config(folder, model, num_steps, texts)
    else:
        solver, settings = SAMPLERS.get(kind, ("DPMSolver2M", {"grid": 50}))
        sampler = {"class_path": solver, "init_args": settings | ({"grid": num_steps} if num_steps else {})}
        config = _config(sampler, model, None, weight=FILE_WEIGHTS.get(kind, 1.0))
        config["data"] = _no_data(model)
        config["data"]["init_args"] |= LATENTS.get(kind, {})
        if motion and model.token_channels:
            config["data"] = {"class_path": "MotionPrompts", "init_args": motion}
    config["model"]["init_args"] |= {"denoiser": model.recipe if copy else published, "average": None}
    callbacks = report_callbacks(model.data_shape, motions=config["data"]["class_path"] == "MotionPrompts")
    config = {"trainer": {"default_root_dir": str(run), "callbacks": callbacks}, **config}
    if copy:  # as the one snapshot of the run, which does not say how old it is
        write_run(run, model, dict(model.state_dict()), images=1, sigma_rel=0.05, planned_images=None)
        config["model"]["init_args"]["average"] = 0.05
    print(f"{write_config(run, config)} samples {kind}:{place}; now: lightning-guide predict {run}")


def _absolute(place: str) -> str:
    """Return the absolute path of a file or folder, and anything else, such as a name on the hub, as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place


def _diffusers_config(
    folder: DiffusersFolder, model: Denoiser, num_steps: int | None, texts: Sequence[str] | None
) -> dict[str, Any]:
    """Return model and data as the folder says."""
    if folder.lacks_vae:
        print(f"{folder.source} has no folder vae with an autoencoder: samples stay latents")
    steps = num_steps or (2 if isinstance(folder.scheduled(1).preconditioning, Consistency) else 50)
    scheduled = folder.scheduled(steps, data_shape=model.data_shape)
    weight = WEIGHTS.get(str(folder.index.get("_class_name")), 4.0)
    config = _config(_sampler(scheduled, model, steps), model, scheduled, weight=weight)
    if model.token_channels:
        named = {"source": folder.source, "revision": folder.revision, "variant": folder.variant}
        arguments = {"prompts": list(texts or PROMPTS)} | {key: each for key, each in named.items() if each}
        return config | {"data": {"class_path": "Prompts", "init_args": arguments}}
    config["data"] = _no_data(model)
    if (space := folder.latent_space()) is not None and space.vae is not None:
        moments = {"mean": space.mean.flatten().tolist(), "std": space.std.flatten().tolist()}
        config["data"]["init_args"] |= {"vae": space.vae.recipe, **moments}
    return config


def _motion_data(
    kind: str, mean: str | None, std: str | None, frames: int | None, texts: Sequence[str] | None
) -> dict[str, Any]:
    """Return the arguments of the data of MDM; empty for other kinds."""
    if kind != "mdm":
        if (mean, std, frames) != (None, None, None):
            raise ValueError(f"mean, std and frames are of MDM; {kind} models have none")
        return {}
    if mean is None or std is None:
        raise ValueError("models of the kind mdm need mean and std, npy files of the features of their training data")
    mean, std = (str(Path(path).expanduser().resolve()) for path in (mean, std))
    return {"prompts": list(texts or MOTIONS), "mean": mean, "std": std, "frames": frames or FRAMES}


def _sampler(scheduled: ScheduledSampling, model: Denoiser, steps: int) -> dict[str, Any]:
    """Return the sampler of the scheduler, by a number of steps if its grid is the model's own."""
    recipe = scheduled.sampler.recipe
    levels, own = scheduled.sampler.levels(model), model.grid(steps).sigmas()
    if levels.shape == own.shape and levels.allclose(own, rtol=1e-9):
        recipe["init_args"]["grid"] = steps
    return recipe


def _config(
    sampler: dict[str, Any], model: Denoiser, scheduled: ScheduledSampling | None, *, weight: float
) -> dict[str, Any]:
    """Return the module: evaluations without guidance and under CFG, the latter for predictions."""
    evaluation: dict[str, Any] = {"num_samples": 16, "batch_size": 4, "sampler": sampler}
    clipping = None if scheduled is None else scheduled.clipping
    guided = {
        "unguided": None,
        "cfg": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": weight}},
    }
    network = model.network if isinstance(model, Preconditioned) else None
    if not model.conditional or weight == 1 or not getattr(network, "null_condition", True):
        del guided["cfg"]
    if clipping is not None:
        limits = Clipped(clipping.limit, quantile=clipping.quantile, ceiling=clipping.ceiling, follow=clipping.follow)
        for name, guidance in guided.items():
            outer = limits.recipe
            outer["init_args"]["positive"] = guidance or outer["init_args"]["positive"]
            guided[name] = outer
    loops = {name: evaluation | ({} if each is None else {"guidance": each}) for name, each in guided.items()}
    arguments = {"loss": None, "evaluations": loops, "prediction": list(loops.values())[-1]}
    return {"model": {"class_path": "DiffusionModule", "init_args": arguments}}


def _no_data(model: Denoiser) -> dict[str, Any]:
    """Return data that only say what samples are."""
    shape = {"data_shape": list(model.data_shape), "num_classes": model.num_classes}
    return {"class_path": "NoData", "init_args": shape}
