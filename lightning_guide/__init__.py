"""Diffusion models in PyTorch Lightning, guided by their own younger or differently averaged selves."""

__version__ = "0.1.0"

# Where public names live. Recipes and configs of older versions find a class here by its name, wherever it was before.
PUBLIC = (
    "lightning_guide.denoiser",
    "lightning_guide.preconditioning",
    "lightning_guide.noise",
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
}
