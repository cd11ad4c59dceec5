"""Diffusion models in PyTorch Lightning, guided by worse versions of themselves and by two dozen other guidances.

    import lightning_guide as lg

    model = lg.load("runs/digits/main")
    guider = lg.load("runs/digits/main", images="1/8", sigma_rel=0.1)
    x = lg.sample(lg.Autoguidance(guider, weight=2, positive=model), lg.Heun(18), labels=[3] * 16, seed=0)

Every name that the packages of the library in `PUBLIC` export is a name of `lightning_guide`, too, imported when it is
first used.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Where public names live. Recipes and configs of older versions find a class here by its name, wherever it was before.
PUBLIC = (
    "lightning_guide.denoiser",
    "lightning_guide.preconditioning",
    "lightning_guide.network",
    "lightning_guide.noise",
    "lightning_guide.noise_schedule",
    "lightning_guide.data",
    "lightning_guide.samplers",
    "lightning_guide.distributions",
    "lightning_guide.snapshots",
    "lightning_guide.networks",
    "lightning_guide.training",
    "lightning_guide.runs",
    "lightning_guide.pretrained",
    "lightning_guide.objectives",
    "lightning_guide.guidance",
    "lightning_guide.evaluation",
    "lightning_guide.optimization",
    "lightning_guide.modules",
    "callbacks",
    "datamodules",
)

# Classes that were renamed: old name, or old path where the name has another meaning today -> new name.
RENAMED: dict[str, str] = {
    "lightning_guide.guidance.energy.Quadratic": "SquaredDistance",
    "lightning_guide.guidance.energy.energies.Quadratic": "SquaredDistance",
    "lightning_guide.guidance.energy.energies.distance.Quadratic": "SquaredDistance",
    "lightning_guide.guidance.energy.Adam": "AdamStep",
    "lightning_guide.guidance.energy.adam.Adam": "AdamStep",
    "callbacks.density_map.Window": "ViewWindow",
    "lightning_guide.networks.Block": "EDM2Block",
    "lightning_guide.networks.unet_block.Block": "EDM2Block",
    "lightning_guide.optimisation.Goal": "GoalTarget",
    "lightning_guide.optimisation.targets.Goal": "GoalTarget",
    "lightning_guide.guidance.energy.Move": "Update",
    "lightning_guide.guidance.energy.moves.Move": "Update",
    "lightning_guide.guidance.energy.point.Point": "StepContext",
    "lightning_guide.guidance.energy.landscape.Landscape": "LocalLoss",
    "lightning_guide.modules.models.OtherRuns": "DryRunModels",
    "lightning_guide.data.DataView": "DataInterface",
    "lightning_guide.optimisation.tables.Tables": "RoundBuffers",
    "AgreementByClass": "AccuracyByClass",
    "Around": "ModuleWrapper",
    "Capped": "ClippedStep",
    "ClassAgreement": "ClassAccuracy",
    "CloseUp": "ZoomWindow",
    "Colour": "ColorJitter",
    "Constant": "ConstantStep",
    "DigitWords": "DigitCaptions",
    "Everywhere": "FullMask",
    "Execution": "TrainingOptimizations",
    "FixedShare": "ProportionalAncestral",
    "Gain": "GainTarget",
    "GradientOptimisation": "GradientOptimization",
    "GuidedWalks": "GuidedTrajectories",
    "Linearisation": "Linearization",
    "Memorisation": "Memorization",
    "NeighbourBalls": "NeighborBalls",
    "Normalised": "NormalizedStep",
    "OtherCondition": "ConditionReplacement",
    "PathFigure": "MotionFigure",
    "PathMetrics": "MotionMetrics",
    "ClassFolder": "ImageArchive",
    "PictureArchive": "ImageArchive",
    "PictureAttention": "ImageAttention",
    "PictureAutoencoder": "ImageAutoencoder",
    "PictureFiles": "ImageFiles",
    "PictureNetwork": "ImageToImageNetwork",
    "PictureTask": "ImageTask",
    "PictureTaskModule": "ImageTaskModule",
    "Pictures": "ImageFolder",
    "Polyak": "NoiseScaledPolyakStep",
    "Reaction": "PredictionNegative",
    "ReadTokens": "CrossAttention",
    "Recorded": "HasRecipe",
    "RootMeanSquare": "RootMeanSquareStep",
    "SamplesOnly": "NoData",
    "SelfSynthesised": "SelfSynthesized",
    "StopCleanly": "GracefulStop",
    "TokenMean": "MeanTokenEmbedding",
    "TruePolyak": "PolyakStep",
    "Truth": "ReferenceDensity",
    "Window": "SigmaWindow",
    "Walk": "RecordedTrajectory",
}

# Arguments that were renamed, by the name of the class today: old argument -> new argument.
RENAMED_ARGUMENTS: dict[str, dict[str, str]] = {
    "EnergyGuidance": {"moves": "updates"},
    "Latents": {"pictures": "images"},
}


def __getattr__(name: str) -> Any:
    """Package of `PUBLIC`, else a public name of the first that has it; only that one is imported (PEP 562)."""
    if f"{__name__}.{name}" in PUBLIC:
        return import_module(f"{__name__}.{name}")
    if name == "__all__":
        return sorted({public for package in _packages() for public in _exported(package)})
    if not name.startswith("_"):
        for package in _packages():
            if name in _exported(package):
                return getattr(import_module(package), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names."""
    return sorted({*globals(), *__getattr__("__all__")})


def _packages() -> list[str]:
    """Packages of this library in `PUBLIC`."""
    return [package for package in PUBLIC if package.startswith(f"{__name__}.")]


@cache
def _exported(module: str) -> tuple[str, ...]:
    """`__all__` of a module of this library, read from its source: a list, to which those of its packages are added."""
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AugAssign) and getattr(target, "id", None) == "__all__":
            if isinstance(node.value, ast.Attribute) and isinstance(node.value.value, ast.Name):
                names += _exported(f"{module}.{node.value.value.id}")
            else:
                names += ast.literal_eval(node.value)
    return tuple(names)
