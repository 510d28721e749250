"""Names of machinery that is not here, so that files which only mention them import and run.

A class made here can be used in `isinstance` (nothing is one) and in annotations; constructing it, or calling a function made here,
raises NotImplementedError with the name of what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def absent_class(name: str, what: str, base: type = object) -> Any:
    """A class of that name whose constructor raises. `what`: the machinery, as the subject of "... is not implemented"."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"{name} cannot be constructed: {what} is not implemented")

    return type(name, (base,), {"__init__": __init__, "__doc__": f"Not implemented: {what}."})


def absent_function(name: str, what: str) -> Callable[..., NoReturn]:
    """A function of that name that raises when it is called."""

    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{name} cannot be called: {what} is not implemented")

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Not implemented: {what}."
    return function
