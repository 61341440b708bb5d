"""Backbones, projectors, predictors and embedding layers: images in [0, 1] in, features out."""

from marginlab.models.backbone import Backbone as Backbone
from marginlab.models.embedding import EmbeddingLayer as EmbeddingLayer
from marginlab.models.export import to_onnx as to_onnx
from marginlab.models.face_vit import FaceViT as FaceViT
from marginlab.models.iresnet import IResNet as IResNet
from marginlab.models.mobilefacenet import MobileFaceNet as MobileFaceNet
from marginlab.models.own import OwnBackbone as OwnBackbone
from marginlab.models.perceptibility import PerceptibilityAttention as PerceptibilityAttention
from marginlab.models.perceptibility import QualityHead as QualityHead
from marginlab.models.predictor import Predictor as Predictor
from marginlab.models.projector import Projector as Projector
from marginlab.models.weights import load_weights as load_weights

__all__ = [
    "Backbone",
    "EmbeddingLayer",
    "FaceViT",
    "IResNet",
    "MobileFaceNet",
    "OwnBackbone",
    "PerceptibilityAttention",
    "Predictor",
    "Projector",
    "QualityHead",
    "load_weights",
    "to_onnx",
]
