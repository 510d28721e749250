"""Where the copies of a layer's experts are. Compatibility: there are no copies."""

from __future__ import annotations


class ExpertLocationDispatchInfo:
    """Never built: `init_new` says that ids are places."""

    @classmethod
    def init_new(cls, layer_id: int) -> None:
        return None
