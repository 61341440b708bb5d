"""Backbones and projectors: images in [0, 1] in, features out."""

from marginlab.models.backbone import Backbone as Backbone
from marginlab.models.projector import Projector as Projector

__all__ = ["Backbone", "Projector"]
