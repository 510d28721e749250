"""The command line is a promise: a flag appears or disappears only together with a line of `flags.txt`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sglang.srt.arg_groups.fields import FlagSpec, Status, flag_specs
from sglang.srt.arg_groups.reference import server_arguments_page
from sglang.srt.server_args import ServerArgs, make_parser
from sglang.srt.utils.errors import ConfigError

FLAGS = (Path(__file__).parent / "flags.txt").read_text(encoding="utf-8").split()
PAGE = Path(__file__).parents[2] / "docs" / "advanced_features" / "server_arguments.md"
SPECS = flag_specs(ServerArgs)
BY_OPTION = {option: spec for spec in SPECS.values() for option in spec.options}
# Combinations that the two flags' own checks refuse first.
_NEEDS_MORE = {"node_rank"}


def other_value(spec: FlagSpec) -> list[str]:
    """Words for the command line that set a flag to something else than its default."""
    if spec.kind is bool:
        return []
    if spec.kind is dict:
        return ['{"image": {}}']
    if spec.is_json:
        return ['{"a": 1}']
    candidates: tuple = (
        spec.choices or {str: ("elsewhere",), int: (3, 4), float: (0.5, 0.75)}[spec.kind]
    )
    return [str(next(c for c in candidates if c != spec.default))]


def test_list_of_flags_is_current() -> None:
    assert sorted(BY_OPTION) == FLAGS, (
        "the flags changed: edit test/unit/flags.txt in the same change and say why a default cannot do"
    )


@pytest.mark.parametrize("option", FLAGS)
def test_every_flag_parses_in_both_spellings(option: str) -> None:
    spec, parser = BY_OPTION[option], make_parser()
    words = other_value(spec)
    spaced = parser.parse_args([option, *words])
    assert getattr(spaced, spec.name) != spec.default
    if words:
        joined = parser.parse_args([f"{option}={words[0]}"])
        assert getattr(joined, spec.name) == getattr(spaced, spec.name)


@pytest.mark.parametrize(
    "name", [s.name for s in SPECS.values() if s.status is Status.REFUSED and s.options]
)
def test_refused_flags_name_themselves_and_their_value(name: str) -> None:
    spec = SPECS[name]
    words = other_value(spec)
    namespace = make_parser().parse_args([spec.option, *words])
    with pytest.raises(ConfigError) as caught:
        ServerArgs.from_cli_args(namespace)
    assert spec.option in str(caught.value)
    if name not in _NEEDS_MORE:
        assert "is not implemented" in str(caught.value)
        assert str(getattr(namespace, name)) in str(caught.value)


@pytest.mark.parametrize("name", [s.name for s in SPECS.values() if s.status is Status.IGNORED])
def test_ignored_flags_warn_and_continue(name: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = SPECS[name]
    ServerArgs.from_cli_args(make_parser().parse_args([spec.option, *other_value(spec)]))
    assert f"{spec.option} " in caplog.text
    assert "is ignored" in caplog.text


@pytest.mark.parametrize("name", [s.name for s in SPECS.values() if s.supports is not None])
def test_values_that_are_not_implemented_are_refused_by_name(name: str) -> None:
    spec = SPECS[name]
    assert set(spec.supports or ()) <= set(spec.choices or ())
    for choice in spec.choices or ():
        namespace = make_parser().parse_args([f"{spec.option}={choice}"])
        if choice in (spec.supports or ()):
            assert getattr(ServerArgs.from_cli_args(namespace), name) == choice
        else:
            with pytest.raises(
                ConfigError, match=f"{spec.option} {choice} is not implemented; use"
            ):
                ServerArgs.from_cli_args(namespace)


def test_policy_of_the_tiers() -> None:
    for spec in SPECS.values():
        assert spec.tier in ("T1", "T2", "T3", "T4"), spec.name
        assert spec.help.endswith("."), spec.name
        if spec.status is Status.IGNORED:
            assert spec.tier == "T4", f"{spec.name}: only T4 flags may be ignored"


def test_documentation_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == server_arguments_page(ServerArgs), (
        "run: python scripts/generate_server_arguments.py"
    )


def test_flags_can_join_a_parser_with_options_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-name", default="x")
    ServerArgs.add_cli_args(parser)
    namespace = parser.parse_args(["--run-name", "y", "--model", "m"])
    assert ServerArgs.from_cli_args(namespace).model_path == "m"
