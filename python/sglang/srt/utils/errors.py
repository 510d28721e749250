"""The two errors that a user can fix: a wrong configuration and a wrong request.

Both are `ValueError`, so that callers who know nothing about this module still catch them.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A flag, environment variable, model file or combination of them that cannot work.

    The message names the value, the allowed values and what to do.
    """


class RequestError(ValueError):
    """A request that is refused; it harms no other request.

    `status_code` is the HTTP status that the entry points answer with.
    """

    def __init__(self, message: str, status_code: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, int]]:
        return type(self), (self.message, self.status_code)
