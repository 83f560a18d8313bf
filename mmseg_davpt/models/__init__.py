"""What mmseg builds from a config."""

from .prompted_vit import PromptedViT
from .segmentor import PromptedEncoderDecoder

__all__ = ['PromptedEncoderDecoder', 'PromptedViT']
