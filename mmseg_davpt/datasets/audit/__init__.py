"""Check every image and mask of a config."""

from .audit import audit_config
from .report import format_audit

__all__ = ['audit_config', 'format_audit']
