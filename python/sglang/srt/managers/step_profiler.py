"""Records the operators of some steps of the scheduler process with `torch.profiler` (`/start_profile`, `/stop_profile`).

A recording begins and ends between steps. Its trace is a gzipped Chrome trace (chrome://tracing, Perfetto, TensorBoard) of this process
alone: with tensor parallelism that is rank 0.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import ProfileOptions

logger = logging.getLogger(__name__)

# A recording grows with every step until it is written; one that is forgotten must not eat the memory.
MAX_STEPS = 2000
# Another kind of trace, or spread over several processes.
_UNSUPPORTED = ("profile_by_stage", "profile_stages", "merge_profiles")
_ACTIVITIES = ("CPU", "GPU", "MEM")
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True)
class ProfilerDefaults:
    """What a request that says nothing gets; `folder` None: a new private folder in the temporary one."""

    folder: str | None = None
    with_stack: bool = True
    record_shapes: bool = True

    @classmethod
    def from_environment(cls) -> ProfilerDefaults:
        return cls(
            envs.SGLANG_TORCH_PROFILER_DIR.get() or None,
            envs.SGLANG_PROFILE_WITH_STACK.get(),
            envs.SGLANG_PROFILE_RECORD_SHAPES.get(),
        )


class StepProfiler:
    """At most one recording at a time. Called from the scheduler's thread only."""

    def __init__(self, defaults: ProfilerDefaults | None = None) -> None:
        self._defaults = defaults or ProfilerDefaults()
        self._recording: _Recording | None = None
        self._num_steps = 0
        self._ended_by_itself: str | None = None  # told to the next `stop`

    def start(self, options: ProfileOptions) -> str:
        """Begin before the next step, or at `options.start_step`; returns a sentence.

        Raises ValueError when a recording runs already, for options that cannot be met and for a folder that cannot be written to.
        """
        if self._recording is not None:
            raise ValueError(
                f"a recording is running already ({self._recording.path}); stop it first"
            )
        path = self._trace_path(options)
        recording = _Recording(options, self._defaults, path)
        recording.begin_if_due(self._num_steps)
        self._recording, self._ended_by_itself = recording, None
        return f"Recording to {path}"

    def stop(self) -> str:
        """Write the trace; returns a sentence with its path. Raises ValueError when nothing is being recorded or it cannot be written."""
        told, self._ended_by_itself = self._ended_by_itself, None
        if told is not None:
            return told
        recording, self._recording = self._recording, None
        if recording is None:
            raise ValueError("no recording is running; begin one with /start_profile")
        return recording.write()

    def begin_step(self) -> None:
        """A step is about to be launched."""
        if self._recording is not None:
            try:
                self._recording.begin_if_due(self._num_steps)
            except ValueError as error:  # nobody waits for an answer now
                self._recording, self._ended_by_itself = None, f"Nothing was recorded: {error}"
                logger.warning("%s", self._ended_by_itself)
        self._num_steps += 1

    def end_step(self) -> None:
        """A step has been launched, and what was due has been committed."""
        recording = self._recording
        if recording is None or not recording.count_step():
            return
        self._recording = None
        try:
            self._ended_by_itself = recording.write()
        except ValueError as error:  # nobody waits for an answer now
            self._ended_by_itself = f"The trace is lost: {error}"
        logger.info("%s", self._ended_by_itself)

    def _trace_path(self, options: ProfileOptions) -> Path:
        _check(options)
        root = Path(self._defaults.folder or tempfile.gettempdir()).resolve()
        if options.output_dir is not None:
            folder = (root / options.output_dir).resolve()
            if not folder.is_relative_to(root):
                raise ValueError(
                    f"output_dir={options.output_dir!r} is outside {str(root)!r}; start the server with "
                    "SGLANG_TORCH_PROFILER_DIR set to a folder that holds it"
                )
        elif self._defaults.folder is None:
            folder = Path(tempfile.mkdtemp(prefix="sglang-profile-"))
        else:
            folder = root
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"traces cannot be written to {str(folder)!r}: {error}") from error
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{self._num_steps}-TP0.trace.json.gz"
        return folder / (f"{options.profile_prefix}-{stem}" if options.profile_prefix else stem)


class _Recording:
    """From `start` to the written file."""

    def __init__(self, options: ProfileOptions, defaults: ProfilerDefaults, path: Path) -> None:
        self.path = path
        self._start_step = options.start_step or 0
        self._steps_left = options.num_steps or MAX_STEPS
        self._steps_done = 0
        self._arguments = _profiler_arguments(options, defaults)
        self._profile: Any = None  # torch.profiler.profile, once it runs

    def begin_if_due(self, step: int) -> None:
        if self._profile is not None or step < self._start_step:
            return
        # Late: heavy, and rarely asked for.
        from torch.profiler import profile

        recorder = profile(**self._arguments)
        try:
            recorder.start()
        except RuntimeError as error:  # another profiler is at work in this process
            raise ValueError(f"the profiler does not start: {error}") from error
        self._profile = recorder

    def count_step(self) -> bool:
        """Whether this was the last one."""
        if self._profile is None:
            return False
        self._steps_done += 1
        self._steps_left -= 1
        return self._steps_left == 0

    def write(self) -> str:
        if self._profile is None:
            return f"Stopped before step {self._start_step}; nothing was recorded"
        self._profile.stop()
        try:
            self._profile.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the trace cannot be written to {self.path}: {error}") from error
        return f"Recorded {self._steps_done} steps to {self.path}"


def _check(options: ProfileOptions) -> None:
    for name in _UNSUPPORTED:
        if getattr(options, name):
            raise ValueError(f"{name} is not supported by this server; leave it out")
    for name in options.activities or ():
        if name not in _ACTIVITIES:
            raise ValueError(
                f"activity {ascii(name)[:40]} is not supported; allowed: {', '.join(_ACTIVITIES)}"
            )
    if options.num_steps is not None and not 1 <= options.num_steps <= MAX_STEPS:
        raise ValueError(f"num_steps={options.num_steps} must be from 1 to {MAX_STEPS}")
    if options.start_step is not None and options.start_step < 0:
        raise ValueError(f"start_step={options.start_step} must be at least 0")
    if options.profile_prefix is not None and not _PREFIX.fullmatch(options.profile_prefix):
        raise ValueError(
            f"profile_prefix={ascii(options.profile_prefix)[:80]} must be up to 64 letters, digits, '.', '_' or '-', "
            "and begin with a letter, a digit or '_'"
        )


def _profiler_arguments(options: ProfileOptions, defaults: ProfilerDefaults) -> dict[str, Any]:
    import torch  # late: heavy, and rarely asked for
    from torch.profiler import ProfilerActivity

    names = options.activities or ["CPU", "GPU"]
    activities = [ProfilerActivity.CPU] if "CPU" in names else []
    if "GPU" in names and torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    if not activities:
        raise ValueError(f"activities={names} records nothing here; add CPU")
    return {
        "activities": activities,
        "with_stack": _given(options.with_stack, defaults.with_stack),
        "record_shapes": _given(options.record_shapes, defaults.record_shapes),
        "profile_memory": "MEM" in names,
    }


def _given(value: bool | None, default: bool) -> bool:
    return default if value is None else value
