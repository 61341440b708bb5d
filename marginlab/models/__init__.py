"""Backbones, projectors, predictors and embedding layers: images in [0, 1] in, features out."""

from marginlab.models.backbone import Backbone as Backbone
from marginlab.models.embedding import EmbeddingLayer as EmbeddingLayer
from marginlab.models.own import OwnBackbone as OwnBackbone
from marginlab.models.predictor import Predictor as Predictor
from marginlab.models.projector import Projector as Projector

__all__ = ["Backbone", "EmbeddingLayer", "OwnBackbone", "Predictor", "Projector"]
