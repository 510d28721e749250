"""Runs a file in Triton's interpreter, in a process of its own: how Triton runs is decided when it is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run_cases(name: str, *paths: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The pytest run of the file `name` beside this one; `paths` are importable in it."""
    return _run(["-m", "pytest", "-q", "-p", "no:cacheprovider"], name, paths, env)


def run_script(name: str) -> subprocess.CompletedProcess[str]:
    """The run of the script `name` beside this file."""
    return _run([], name, (), {})


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    """What it printed; fails with it where it failed."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def _run(
    options: list[str], name: str, paths: tuple[Path, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT / "python"), *map(str, paths), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)} | env
    command = [sys.executable, *options, str(Path(__file__).with_name(name))]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
