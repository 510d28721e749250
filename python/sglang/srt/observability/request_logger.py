"""Writes one line when a request arrives and one when it ends (`--log-requests`).

The environment may bound it: `SGLANG_DISABLE_REQUEST_LOGGING` forbids it, whatever the flag and `/configure_logging` say;
`SGLANG_LOG_REQUEST_EXCEEDED_MS` leaves the ends of slow requests only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.media_input import MEDIA_FIELDS, describe_media

# Level 2 shows this much of a prompt or output.
MAX_PARTIAL_CHARS = 2048
_CONTENT_FIELDS = ("text", "input_ids", "input_embeds", "image_data", "video_data", "audio_data")
_OWN_LOGGER = "sglang.requests"
_METADATA = (
    "id",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "e2e_latency",
)


class RequestLogger:
    """Levels: 0 metadata; 1 also sampling parameters; 2 also the start of input and output; 3 everything.

    Args:
        targets: "stdout" and folders (one file per day); empty: the log.
    """

    def __init__(self, level: int = 2, format: str = "text", targets: Sequence[str] = ()) -> None:
        self.level = level
        self._is_json = format == "json"
        self._least_seconds = envs.SGLANG_LOG_REQUEST_EXCEEDED_MS.get() / 1000
        self._logger = _make_logger(targets)

    def configure(self, level: int, format: str) -> None:
        """Change what the next lines show; where they go stays."""
        self.level, self._is_json = level, format == "json"

    @property
    def format(self) -> str:
        return "json" if self._is_json else "text"

    def close(self) -> None:
        """Close the files of its own."""
        if self._logger.name == _OWN_LOGGER:
            for handler in self._logger.handlers:
                handler.close()

    @classmethod
    def from_server_args(cls, server_args: Any) -> RequestLogger | None:
        """None when requests are not logged."""
        if not server_args.log_requests or cls.is_forbidden():
            return None
        return cls(
            server_args.log_requests_level,
            server_args.log_requests_format,
            server_args.log_requests_target or (),
        )

    @staticmethod
    def is_forbidden() -> bool:
        """Whoever runs the machine wants no content of requests in its logs."""
        return envs.SGLANG_DISABLE_REQUEST_LOGGING.get()

    def log_received(self, obj: GenerateReqInput, rids: Sequence[str]) -> None:
        if self._least_seconds >= 0:
            return  # who will be slow is not known yet
        self._write("request.received", {"rid": _one_or_list(rids), **self._input_fields(obj)})

    def log_finished(self, obj: GenerateReqInput, item: Mapping[str, Any]) -> None:
        """`item` is the last response of one sample."""
        meta = item["meta_info"]
        if meta.get("e2e_latency", 0.0) < self._least_seconds:
            return
        if self.level < 3:
            meta = {name: meta[name] for name in _METADATA if name in meta}
        fields: dict[str, Any] = {"rid": item["meta_info"]["id"]}
        if self.level >= 1:
            fields["sampling_params"] = obj.sampling_params
        if self.level >= 2:
            fields["out"] = {k: self._shorten(item[k]) for k in ("text", "output_ids") if k in item}
        self._write("request.finished", {**fields, "meta_info": meta})

    def _input_fields(self, obj: GenerateReqInput) -> dict[str, Any]:
        fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
        shown = {
            name: value for name, value in fields.items() if value is not None and name != "rid"
        }
        if self.level < 1:
            shown.pop("sampling_params", None)
        for name in _CONTENT_FIELDS:
            if name in shown and self.level < 2:
                del shown[name]
            elif name in MEDIA_FIELDS and name in shown:
                shown[name] = describe_media(shown[name])
            elif name in shown:
                shown[name] = self._shorten(shown[name])
        return shown

    def _shorten(self, value: Any) -> Any:
        if self.level >= 3:
            return value
        if isinstance(value, str) and len(value) > MAX_PARTIAL_CHARS:
            return value[:MAX_PARTIAL_CHARS] + f"... ({len(value)} characters)"
        if isinstance(value, list):
            half = MAX_PARTIAL_CHARS // 8
            shown = [self._shorten(item) for item in value[:half]]
            return shown + ([f"... ({len(value)} items)"] if len(value) > half else [])
        return value

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        if self._is_json:
            line = {"timestamp": time.time(), "event": event, **fields}
            self._logger.info("%s", json.dumps(line, default=repr, ensure_ascii=False))
            return
        # repr keeps line breaks of a prompt from forging log lines.
        text = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        self._logger.info("%s: %s", event, text)


def _one_or_list(rids: Sequence[str]) -> Any:
    return rids[0] if len(rids) == 1 else list(rids)


def _make_logger(targets: Sequence[str]) -> logging.Logger:
    if not targets:
        return logging.getLogger(__name__)
    logger = logging.Logger(_OWN_LOGGER)  # its own: another engine may log elsewhere
    for target in targets:
        handler = _stdout_handler() if target == "stdout" else _file_handler(Path(target))
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s"))
        logger.addHandler(handler)
    return logger


def _stdout_handler() -> logging.Handler:
    return logging.StreamHandler(sys.stdout)


def _file_handler(folder: Path) -> logging.Handler:
    from logging.handlers import TimedRotatingFileHandler  # late: rarely asked for

    folder.mkdir(parents=True, exist_ok=True)
    return TimedRotatingFileHandler(folder / "requests.log", when="midnight", delay=True)
