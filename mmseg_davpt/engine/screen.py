"""``QuietRunner``: few lines on the screen; the log file has all of them."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..compat import is_worth_a_line


class QuietRunner(Runner):
    """``Runner`` whose screen shows only warnings until :func:`open_screens` is called.

    Config, environment, hooks and the table of parameters go to the log file. In a training,
    :class:`~mmseg_davpt.engine.RunSummaryHook` opens the screen and logs a summary of them.
    """

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Build the logger, with a screen that shows warnings."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            handler.addFilter(is_worth_a_line)
        for handler in screens(logger):
            handler.setLevel(max(handler.level, logging.WARNING))
        return logger


def screens(logger: logging.Logger) -> list[logging.StreamHandler[Any]]:
    """Handlers of a logger that write to a screen, not to a file."""
    handlers = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    return [handler for handler in handlers if not isinstance(handler, logging.FileHandler)]


def open_screens(logger: logging.Logger, level: int | str = 'INFO') -> None:
    """Let screens that show warnings show everything from a level on; those of other ranks show errors.

    Args:
        logger: Of a runner.
        level: As ``log_level`` of the config.
    """
    for handler in screens(logger):
        if handler.level == logging.WARNING:
            handler.setLevel(level)
