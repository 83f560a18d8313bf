"""What this project adds inside the trunk."""

from .attention import BlockTap, PromptedAttention, carry_prompts
from .prompts import Prompts

__all__ = ['BlockTap', 'PromptedAttention', 'Prompts', 'carry_prompts']
