"""What mmseg builds from a config."""

from .linear_head import LinearBNHead
from .prompted_vit import PromptedViT
from .segmentor import PromptedEncoderDecoder

__all__ = ['LinearBNHead', 'PromptedEncoderDecoder', 'PromptedViT']
