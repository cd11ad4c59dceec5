"""Texts of `lightning-guide --help`, `lightning-guide COMMAND --help` and `--version`."""

from __future__ import annotations

import platform
import re
import textwrap
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from lightning_guide import __version__
from lightning_guide.cli.table import COMMANDS, Argument, Signature, read_signature

__all__ = ["command_help", "overview", "version"]

WIDTH = 110

CONFIG = {
    "RUN or -c CONFIG": "folder of a run, or a YAML file; further -c are laid over it, later ones win",
    "--trainer.default_root_dir RUN": "folder of the run: snapshots, checkpoints, curves, reports",
}
MACHINE = {
    "--trainer.accelerator gpu": "device; default: a GPU if there is one",
    "--trainer.devices 8": "number of processes; with -c configs/ddp.yaml on one machine",
    "--seed_everything 1": "seed of everything",
    "--print_config": "print the config that all files and options give, and stop",
    "--help all": "every option; of one class: --model.help NAME, --data.help NAME",
}
EVALUATION = {
    "-c configs/guidance/cfg.yaml": "a guidance, laid over the config of the run; any file of configs/guidance",
    "--model.images 1/8": "evaluate the model as it was after this part of its training; default: its end",
    "--model.average 0.1": "width of the average of weights that is evaluated; null: the raw weights",
    "--trainer.callbacks+=SampleGrid": "add a callback",
    "--ckpt_path FILE": "checkpoint of raw weights, if average is null",
}
# Of LightningCLI's commands: what a user would set first, and examples. Every option can be set in a config, too.
OPTIONS: dict[str, dict[str, str]] = {
    "fit": CONFIG
    | {
        "--trainer.max_steps 1000": "length of the training in steps of the optimizer",
        "--trainer.val_check_interval 500": "evaluate after every so many batches",
        "--trainer.accumulate_grad_batches 2": "batches in one step, if memory is short",
        "--trainer.precision bf16-mixed": "half precision, on GPUs and some CPUs",
        "--trainer.callbacks+=RunReport": "add a callback",
        "--data.batch_size 64": "images in one batch, of each process",
        "--model.learning_rate.peak 0.01": "highest learning rate",
        "--ckpt_path FILE": "checkpoint to continue from; default: the newest of the run",
    }
    | MACHINE,
    "validate": CONFIG
    | {"--model.evaluations.NAME.num_samples 500": "samples of the evaluation NAME of the config"}
    | EVALUATION
    | MACHINE,
    "test": CONFIG | EVALUATION | MACHINE,
    "predict": CONFIG
    | {
        "--model.prediction.num_samples 16": "how many samples",
        "--model.prediction.seed 1": "seed of the samples",
        "--model.prediction.labels 3": "label of all samples; default: all classes in turn",
        "--model.prediction.batch_size 8": "samples in one network call",
    }
    | EVALUATION
    | MACHINE,
}
EXAMPLES = {
    "init": ["configs"],
    "fit": ["-c configs/digits/main.yaml", "-c configs/digits/main.yaml -c configs/ddp.yaml --trainer.devices 2"],
    "validate": ["runs/digits/main", "runs/digits/main -c configs/guidance/cfg.yaml"],
    "test": ["runs/fractal2d/main -c configs/fractal2d/report.yaml"],
    "predict": ["runs/digits/main", "runs/digits/main -c configs/guidance/cfg.yaml"],
    "report": ["runs/digits/main"],
    "score": [
        "runs/x/samples/cfg-seed0 --against data/photos --size 64",
        "samples.npz --against statistics.pkl --extractor DINOv2Features",
    ],
    "compare": ["samples/cfg samples/pag samples/none.zip --against 'data/train-*.tar' --metrics fd,kid"],
    "verify": ["extractors --download true --out numbers.json", "extractors --expect numbers.json"],
    "playground": ["runs/digits/main", "models/sd15 --device cuda --port 8000 --browser false"],
    "gallery": [
        "runs/digits/main configs/guidance",
        "runs/digits/main configs/guidance/cfg.yaml configs/guidance/pag.yaml",
    ],
    "tune": ["runs/digits/main configs/search/digits.yaml --budget 20000 --out runs/digits/tuned"],
    "sweep": ["runs/digits/main configs/search/digits.yaml --out runs/digits/sweep"],
    "convert": ["data/flowers data/shards --size 32", "torchvision:CIFAR10:data data/cifar10 --download true"],
    "encode": ["'data/train-*.tar' data/latents --vae DiffusersVAE --vae.path stabilityai/sd-vae-ft-mse"],
    "prompts": ["stabilityai/stable-diffusion-xl-base-1.0 prompts.txt prompts.npy --dtype float16"],
    "statistics": ["reference.npz --data Digits --extractor RawPixels"],
    "reconstruct": ["runs/digits/main 0.03 0.07 --images 1/2"],
    "neon": ["runs/digits/main runs/digits/on_samples --weight 1.5"],
    "import": ["diffusers PATH/TO/stable-diffusion-v1-5 runs/sd15", "edm2 edm2-img64-s-1073741-0.075.pkl runs/edm2-s"],
    "export": ["runs/digits/main exported --sigma_rel 0.05", "runs/pretrained/sd15_lora loras/style --form lora"],
    "push": ["runs/digits/main OWNER/NAME"],
    "pull": ["OWNER/NAME runs/pulled"],
}


def overview() -> str:
    """All commands in groups."""
    lines = ["usage: lightning-guide COMMAND ...", ""]
    lines += ["Train diffusion models, keep earlier snapshots as guiders, sample and evaluate under guidance."]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        commands = {name: each.summary for name, each in COMMANDS.items() if each.group == group}
        lines += ["", f"{group}:", *_columns(commands, 14)]
    how = {"COMMAND --help": "its options and examples", "COMMAND --help all": "every option of it"}
    lines += ["", "Help:", *_columns(how | {"--version": "versions of the packages"}, 20)]
    return "\n".join(lines)


def version() -> str:
    """Versions of this package, Python, torch and Lightning, none of them imported."""
    found = []
    for package in ("torch", "lightning"):
        try:
            found.append(f"{package} {installed(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"lightning-guide {__version__} (Python {platform.python_version()}, {', '.join(found)})"


def command_help(name: str) -> str:
    """What a command does, what a user would set first, and examples."""
    function = COMMANDS[name].function
    text = _of_function(name, read_signature(function)) if function else _of_lightning(name)
    examples = [f"  lightning-guide {name} {each}" for each in EXAMPLES[name]]
    return "\n".join([*text, "", "Examples:", *examples])


def _of_lightning(name: str) -> list[str]:
    summary = COMMANDS[name].summary
    usage = f"usage: lightning-guide {name} RUN|-c CONFIG [-c CONFIG ...] [--KEY VALUE ...]"
    options = "Set first; every KEY of a config is an option:"
    return [usage, "", f"{summary[0].upper()}{summary[1:]}.", "", options, *_columns(OPTIONS[name], 40)]


def _of_function(name: str, signature: Signature) -> list[str]:
    needed = [f"--{each.name} {each.name.upper()}" for each in _options(signature) if each.default is None]
    words = " ".join([*(each.name.upper() for each in signature.positionals), *needed])
    lines = [f"usage: lightning-guide {name} {words} [--OPTION VALUE ...]", ""]
    for paragraph in signature.text.split("\n\n"):
        lines += [*textwrap.wrap(re.sub(r"`+", "", " ".join(paragraph.split())), WIDTH), ""]
    lines += _columns({each.name.upper(): each.help.rstrip(".") for each in signature.positionals}, 24)
    options = {f"--{each.name}": _with_default(each) for each in _options(signature)}
    return [*lines, "", "Options:", *_columns(options | {"--help all": "with types, and options of classes"}, 24)]


def _options(signature: Signature) -> list[Argument]:
    return [each for each in signature.arguments.values() if not each.positional]


def _with_default(argument: Argument) -> str:
    text = argument.help.rstrip(".")
    shown = argument.default not in (None, "None") and "default" not in text
    return f"{text}; default: {argument.default}" if shown else text


def _columns(rows: dict[str, str], width: int) -> list[str]:
    """Indented rows of two columns, the first of `width` characters, wrapped to `WIDTH`."""
    lines = []
    for name, text in rows.items():
        first, *more = textwrap.wrap(re.sub(r"`+", "", text), WIDTH - width - 2) or [""]
        lines += [f"  {name:<{width}}{first}" if len(name) < width else f"  {name}\n  {'':<{width}}{first}"]
        lines += [f"  {'':<{width}}{each}" for each in more]
    return lines
