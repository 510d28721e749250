"""Steps of the start that all ranks of a group do alike or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sglang.srt.distributed.group import GroupCoordinator
from sglang.srt.utils.errors import ConfigError

T = TypeVar("T")


def do_alike(group: GroupCoordinator, what: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank; the result, once it is known to have succeeded on all of them.

    An error that every rank met goes on as it is, so that all can do without alike. One that only some met is a ConfigError on
    all: their collectives are out of step. Every rank must call this with the same `what` ("capturing ..."), which heads the message.
    """
    if group.world_size == 1:
        return action()
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # goes on as soon as the other ranks know
        failure = error
    num_failed = group.sum_of_hosts(int(failure is not None))
    if failure is not None and num_failed == group.world_size:
        raise failure
    if num_failed:
        reason = "" if failure is None else f": {type(failure).__name__}: {failure}"
        raise ConfigError(
            f"{what} failed on {num_failed} of {group.world_size} ranks{reason}; see their logs"
        ) from failure
    return result


def all_can(group: GroupCoordinator, reason: str | None) -> str | None:
    """None when no rank has a `reason` against something; otherwise this rank's reason, or a word of another's."""
    num_against = group.sum_of_hosts(int(reason is not None))
    if num_against == 0:
        return None
    return reason or f"{num_against} of {group.world_size} ranks cannot"
