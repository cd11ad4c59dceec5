"""Diffusion models in PyTorch Lightning, guided by their own younger or differently averaged selves."""

__version__ = "0.1.0"

# Where public names live. Recipes and configs of older versions find a class here by its name, wherever it was before.
PUBLIC = (
    "lightning_guide.analytic",
    "lightning_guide.denoiser",
    "lightning_guide.noise",
    "lightning_guide.networks",
    "lightning_guide.samplers",
    "lightning_guide.losses",
    "lightning_guide.guidance",
    "lightning_guide.guidance.energy",
    "lightning_guide.evaluation",
    "lightning_guide.modules.learning_rate",
    "lightning_guide.modules.diffusion",
    "callbacks",
    "datamodules",
)

# Classes that were renamed: old name -> new name.
RENAMED: dict[str, str] = {}
