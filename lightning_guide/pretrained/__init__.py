"""Networks trained elsewhere: autoencoders, backbones of rewards, and guide networks, loaded at first use."""

from __future__ import annotations

from lightning_guide.pretrained.adm import ADM
from lightning_guide.pretrained.adm_classifier import ADMClassifier, ADMClassifierFile
from lightning_guide.pretrained.autoencoders import (
    Autoencoder,
    DiffusersVAE,
    Posterior,
    RunAutoencoder,
    Subspace,
    VariationalAutoencoder,
)
from lightning_guide.pretrained.backbones import Backbone, NamedBackbone, OpenClipBackbone, TimmBackbone
from lightning_guide.pretrained.diffusers_controlnet import ControlledNetwork
from lightning_guide.pretrained.diffusers_folder import DiffusersFolder
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork
from lightning_guide.pretrained.edm import ContinuousVE, ContinuousVP
from lightning_guide.pretrained.edm_adm import ADMWithoutLabels
from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.latent_space import LatentSpace
from lightning_guide.pretrained.networks import AtLevel, GuideNetwork, NamedNetwork, RunNetwork, TimmNetwork
from lightning_guide.pretrained.prompts import CachedPrompts
from lightning_guide.pretrained.source import Pretrained, load
from lightning_guide.pretrained.text_encoders import TextEncoders, encode_prompts
from lightning_guide.pretrained.text_vectors import TextVectors

__all__ = [
    "ADM",
    "ADMClassifier",
    "ADMClassifierFile",
    "ADMWithoutLabels",
    "AtLevel",
    "Autoencoder",
    "Backbone",
    "CachedPrompts",
    "DiffusersFolder",
    "ControlledNetwork",
    "ContinuousVE",
    "ContinuousVP",
    "DiffusersNetwork",
    "DiffusersVAE",
    "FrozenNetwork",
    "GuideNetwork",
    "LatentSpace",
    "NamedBackbone",
    "NamedNetwork",
    "OpenClipBackbone",
    "Posterior",
    "Pretrained",
    "RunAutoencoder",
    "RunNetwork",
    "Subspace",
    "TextEncoders",
    "TextVectors",
    "TimmBackbone",
    "TimmNetwork",
    "VariationalAutoencoder",
    "encode_prompts",
    "load",
]
