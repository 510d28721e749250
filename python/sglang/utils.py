"""Two helpers that model files import from here."""

from __future__ import annotations

import logging
import traceback

logger = logging.getLogger(__name__)


def get_exception_traceback() -> str:
    """The traceback of the exception that is being handled, as text."""
    return traceback.format_exc()
