"""All commands: group, one line, and where the function is; its arguments are read from the source, unimported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["COMMANDS", "Argument", "Command", "Signature", "find_source", "read_signature"]


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        group: heading in the help.
        summary: one line.
        function: ``module:name`` of the function; empty for the commands of LightningCLI.
    """

    group: str
    summary: str
    function: str = ""


TRAIN, SAMPLE, SEARCH = "Train and evaluate", "Sample", "Search the settings of a guidance"
DATA, RUNS = "Data", "Runs and models"

COMMANDS: dict[str, Command] = {
    "init": Command(TRAIN, "copy the configs of the package, to be edited", "lightning_guide.commands.init:init"),
    "fit": Command(TRAIN, "train a model; the same command resumes the run"),
    "validate": Command(TRAIN, "evaluate a run as during training, under any guidance"),
    "test": Command(TRAIN, "evaluate a run by its test loop"),
    "score": Command(TRAIN, "metrics of samples in files, from any program", "datamodules.commands.score:score"),
    "compare": Command(TRAIN, "the same of several sets, with their differences", "datamodules.commands.score:score"),
    "verify": Command(
        TRAIN, "print activations of feature extractors, and compare them", "lightning_guide.commands.verify:verify"
    ),
    "report": Command(TRAIN, "write one HTML page about a run", "lightning_guide.report.run_page:report"),
    "predict": Command(SAMPLE, "draw samples of a run"),
    "gallery": Command(
        SAMPLE, "draw the same seeds under many guidances, in one image", "lightning_guide.commands.gallery:gallery"
    ),
    "playground": Command(
        SAMPLE, "a local page: settings side by side", "lightning_guide.playground.command:playground"
    ),
    "tune": Command(SEARCH, "find good settings with few samples", "lightning_guide.cli.searches:tune"),
    "sweep": Command(SEARCH, "score every point of a grid of settings", "lightning_guide.cli.searches:sweep"),
    "convert": Command(DATA, "write images to WebDataset shards", "datamodules.commands.convert:convert"),
    "encode": Command(DATA, "encode shards of images into latents", "datamodules.commands.encode:encode"),
    "prompts": Command(
        DATA, "encode prompts by the text encoders of a model", "lightning_guide.commands.encode_prompts:encode_prompts"
    ),
    "statistics": Command(
        DATA, "store reference statistics for the metrics", "lightning_guide.commands.statistics:reference_statistics"
    ),
    "reconstruct": Command(
        RUNS, "rebuild other averages of the weights", "lightning_guide.commands.averages:reconstruct"
    ),
    "neon": Command(RUNS, "extrapolate from a model trained on samples", "lightning_guide.commands.averages:neon"),
    "import": Command(RUNS, "make a run of a published model", "lightning_guide.commands.import_model:import_model"),
    "export": Command(RUNS, "write a model for other tools, or a LoRA", "lightning_guide.commands.export:export"),
    "push": Command(RUNS, "upload a model to the Hugging Face Hub", "lightning_guide.runs.hub:push"),
    "pull": Command(RUNS, "make a run of a model on the Hugging Face Hub", "lightning_guide.runs.hub:pull"),
}


@dataclass(frozen=True)
class Argument:
    """An argument of a command; `default` and `type` as in the source, `default` None if it is required."""

    name: str
    type: str
    default: str | None
    positional: bool
    help: str


@dataclass(frozen=True)
class Signature:
    """What a command does, and its arguments by name."""

    text: str
    arguments: dict[str, Argument]

    @property
    def positionals(self) -> list[Argument]:
        """Arguments given by their place."""
        return [each for each in self.arguments.values() if each.positional]


def find_source(module: str) -> Path:
    """Return the file of a module without importing it or its packages.

    Raises:
        ModuleNotFoundError: if its top package is not installed.
    """
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {top} is not installed", name=top)
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def read_signature(function: str) -> Signature:
    """Read the arguments of ``module:name`` or ``module:Class.name`` and their one-line help from the source."""
    module, _, name = function.partition(":")
    node: ast.AST = ast.parse(find_source(module).read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
    assert isinstance(node, ast.FunctionDef)
    text, described = _documented(ast.get_docstring(node) or "")
    placed = [*node.args.posonlyargs, *node.args.args]
    defaults = dict(zip(reversed(placed), reversed(node.args.defaults), strict=False))
    defaults |= {arg: each for arg, each in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if each}
    arguments = {}
    for arg in [*placed, *node.args.kwonlyargs]:
        kind, default = (None if each is None else ast.unparse(each) for each in (arg.annotation, defaults.get(arg)))
        described_as = described.get(arg.arg, "")
        arguments[arg.arg] = Argument(arg.arg, kind or "", default, arg in placed and default is None, described_as)
    return Signature(text, {name: each for name, each in arguments.items() if name != "self"})


def _documented(docstring: str) -> tuple[str, dict[str, str]]:
    """Return the text before the sections of a docstring, and the description of each argument."""
    text, _, rest = docstring.partition("\nArgs:\n")
    described: dict[str, str] = {}
    last = ""
    for line in rest.splitlines():
        if not line.strip():
            break
        name, colon, words = line.strip().partition(": ")
        if colon and len(line) - len(line.lstrip()) == 4:
            described[last := name] = words
        elif last:
            described[last] += " " + line.strip()
    return text.partition("\nRaises:\n")[0].partition("\nReturns:\n")[0].strip(), described
