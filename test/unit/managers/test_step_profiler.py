"""Recordings of steps: when they begin and end, where they go, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from scripted import World

from sglang.srt.managers.io_struct import ProfileOptions, ProfileReply, ProfileReq
from sglang.srt.managers.step_profiler import MAX_STEPS, ProfilerDefaults, StepProfiler


@pytest.fixture
def profiler(tmp_path):
    return StepProfiler(ProfilerDefaults(str(tmp_path), with_stack=False))


def steps(profiler, count):
    for _ in range(count):
        profiler.begin_step()
        torch.ones(3, 3) @ torch.ones(3, 3)
        profiler.end_step()


def products(folder):
    """How many matrix products each trace holds."""
    counts = []
    for path in sorted(folder.rglob("*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        counts.append(sum(event.get("name") == "aten::mm" for event in events))
    return counts


def test_between_start_and_stop(profiler, tmp_path):
    steps(profiler, 2)
    assert str(tmp_path) in profiler.start(ProfileOptions())
    steps(profiler, 3)
    assert "Recorded 3 steps to" in profiler.stop()
    steps(profiler, 2)
    assert products(tmp_path) == [3]


def test_ends_by_itself_and_says_so_once(profiler, tmp_path):
    profiler.start(ProfileOptions(num_steps=2))
    steps(profiler, 5)
    assert products(tmp_path) == [2]
    assert "Recorded 2 steps" in profiler.stop()
    with pytest.raises(ValueError, match="no recording is running"):
        profiler.stop()


def test_waits_for_its_first_step(profiler, tmp_path):
    steps(profiler, 1)
    profiler.start(ProfileOptions(start_step=3, num_steps=2))
    steps(profiler, 6)
    assert products(tmp_path) == [2]
    profiler.start(ProfileOptions(start_step=100))
    steps(profiler, 1)
    assert "nothing was recorded" in profiler.stop()


def test_one_at_a_time(profiler):
    profiler.start(ProfileOptions())
    with pytest.raises(ValueError, match="running already"):
        profiler.start(ProfileOptions())
    profiler.stop()
    profiler.start(ProfileOptions())
    profiler.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": MAX_STEPS + 1}, "num_steps"),
        ({"start_step": -1}, "start_step"),
        ({"activities": ["RPD"]}, "RPD"),
        ({"activities": ["MEM"]}, "add CPU"),
        ({"profile_by_stage": True}, "profile_by_stage"),
        ({"merge_profiles": True}, "merge_profiles"),
        ({"profile_stages": ["prefill"]}, "profile_stages"),
        ({"profile_prefix": "../x"}, "profile_prefix"),
        ({"profile_prefix": ".x"}, "profile_prefix"),
        ({"output_dir": "/etc"}, "SGLANG_TORCH_PROFILER_DIR"),
        ({"output_dir": "../other"}, "outside"),
    ],
)
def test_refused(profiler, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        profiler.start(ProfileOptions(**options))
    steps(profiler, 1)
    assert not list(tmp_path.iterdir())


def test_links_do_not_lead_outside(profiler, tmp_path):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(ValueError, match="outside"):
        profiler.start(ProfileOptions(output_dir="link/tmp"))


def test_names(profiler, tmp_path):
    profiler.start(
        ProfileOptions(output_dir="a/b", profile_prefix="run-1", activities=["CPU", "MEM"])
    )
    steps(profiler, 1)
    profiler.stop()
    (path,) = (tmp_path / "a" / "b").iterdir()
    assert path.name.startswith("run-1-") and path.name.endswith("-TP0.trace.json.gz")


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    profiler = StepProfiler(ProfilerDefaults(str(tmp_path / "file")))
    with pytest.raises(ValueError, match="cannot be written"):
        profiler.start(ProfileOptions(output_dir="below"))


def test_without_a_folder_a_private_one_is_made():
    profiler = StepProfiler(ProfilerDefaults(with_stack=False))
    profiler.start(ProfileOptions())
    steps(profiler, 1)
    path = Path(profiler.stop().rpartition(" to ")[2])
    folder = path.parent
    assert folder.stat().st_mode & 0o077 == 0 and products(folder) == [1]
    path.unlink()
    folder.rmdir()


def test_through_the_scheduler(tmp_path):
    world = World()
    world.scheduler.profiler = StepProfiler(ProfilerDefaults(str(tmp_path), with_stack=False))
    world.submit("r", [1, 2, 4], max_new_tokens=6, ignore_eos=True)
    world.postbox.inbox += [
        ProfileReq(call_id="stop too early"),
        ProfileReq(call_id="start", options=ProfileOptions(num_steps=4)),
        ProfileReq(call_id="again", options=ProfileOptions()),
    ]
    world.run_until_idle()
    world.postbox.inbox.append(ProfileReq(call_id="stop"))
    world.scheduler.receive(0.0)
    replies = {m.call_id: m for m in world.postbox.sent if isinstance(m, ProfileReply)}
    success = {call: reply.success for call, reply in replies.items()}
    assert success == {"stop too early": False, "start": True, "again": False, "stop": True}
    assert "Recorded 4 steps" in replies["stop"].message
    assert len(products(tmp_path)) == 1
