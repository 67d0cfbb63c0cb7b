"""Stage-1 encoders: images and texts to unit vectors, images to vision tokens."""

from __future__ import annotations

from edje_qdrant.errors import UnsupportedVersionError

UnsupportedVersionError.check("transformers")

from edje_qdrant.encoders.loading import encoder_from_folder, pretrained_encoder
from edje_qdrant.encoders.open_clip import OpenClipEncoder
from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.encoders.siglip import SiglipEncoder
from edje_qdrant.text import clean_caption, clean_captions

__all__ = [
    "Encoder",
    "OpenClipEncoder",
    "SiglipEncoder",
    "clean_caption",
    "clean_captions",
    "encoder_from_folder",
    "pretrained_encoder",
]
