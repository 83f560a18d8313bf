"""What this project adds inside the trunk."""

from .attention import BlockTap, CarriedPrompts, PromptedAttention
from .prompts import Prompts

__all__ = ['BlockTap', 'CarriedPrompts', 'PromptedAttention', 'Prompts']
