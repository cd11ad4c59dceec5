"""Lightning datamodules: where training data, reference data and sample indices come from."""

from datamodules.base import DiffusionData
from datamodules.digit_words import DigitWords
from datamodules.digits import Digits
from datamodules.examples import Examples, TensorExamples
from datamodules.images import ImageData
from datamodules.latents import Latents
from datamodules.picture_data import Pictures
from datamodules.points import Points
from datamodules.samples_only import SamplesOnly
from datamodules.self_synthesis import SelfSynthesised
from datamodules.shard_writer import write_shards
from datamodules.shards import Shards
from datamodules.subspace import SubspacePoints
from datamodules.trajectories import Trajectories

__all__ = [
    "DiffusionData",
    "DigitWords",
    "Digits",
    "Examples",
    "ImageData",
    "Latents",
    "Pictures",
    "Points",
    "SamplesOnly",
    "SelfSynthesised",
    "Shards",
    "SubspacePoints",
    "TensorExamples",
    "Trajectories",
    "write_shards",
]
