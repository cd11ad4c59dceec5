"""Lightning datamodules: where training data, reference data and sample indices come from."""

from __future__ import annotations

from datamodules.base import DiffusionData
from datamodules.base_images import ImageData, RecordImages
from datamodules.buckets import AspectBuckets
from datamodules.captioned_images import CaptionedImages
from datamodules.commands.convert import ImageArchive
from datamodules.digit_captions import DigitCaptions
from datamodules.digits import Digits
from datamodules.examples import Examples, Slices, TensorExamples, Visits
from datamodules.image_folder import FileExamples, ImageFolder
from datamodules.latents import DrawnLatents, Latents
from datamodules.motion import Gait, Trajectories
from datamodules.no_data import NoData
from datamodules.points import Points, SubspacePoints
from datamodules.records import RecordExamples
from datamodules.self_synthesized import SelfSynthesized
from datamodules.shard_examples import ShardExamples
from datamodules.shards import Shards
from datamodules.storage.image_files import ImageFiles
from datamodules.storage.shard_writer import write_shards
from datamodules.stream import Stream
from datamodules.text_prompts import MotionPrompts, Prompts, TypedPrompts

__all__ = [
    "AspectBuckets",
    "CaptionedImages",
    "DiffusionData",
    "DigitCaptions",
    "Digits",
    "DrawnLatents",
    "Examples",
    "FileExamples",
    "Gait",
    "ImageArchive",
    "ImageData",
    "Latents",
    "ImageFiles",
    "ImageFolder",
    "Points",
    "Prompts",
    "RecordExamples",
    "RecordImages",
    "MotionPrompts",
    "NoData",
    "SelfSynthesized",
    "ShardExamples",
    "Shards",
    "Slices",
    "Stream",
    "SubspacePoints",
    "TensorExamples",
    "Trajectories",
    "TypedPrompts",
    "Visits",
    "write_shards",
]
