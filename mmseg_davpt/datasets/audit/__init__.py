"""Check every image and mask of a config; check a few before training; write masks with other ids."""

from .audit import audit_config
from .preflight import check_before_training
from .remap import map_masks, parse_map
from .report import format_audit

__all__ = ['audit_config', 'check_before_training', 'format_audit', 'map_masks', 'parse_map']
