"""Environment variables: strict parsing, scoped overrides, and no way to misuse a field as a value."""

from __future__ import annotations

import ast
import logging
import os
import re
from pathlib import Path

import pytest

import sglang
from sglang.srt.environ import EnvField, envs, warn_of_variables
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.log_setup import configure_logging

PACKAGE = Path(sglang.__file__).parent
PAGE = PACKAGE.parents[1] / "docs" / "references" / "environment_variables.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in envs.fields():
        monkeypatch.delenv(name, raising=False)


def test_every_field_yields_its_default_and_survives_a_round_trip() -> None:
    for name, field in envs.fields().items():
        assert field.name == name
        assert not field.is_set()
        default = field.get()
        assert default == field.default
        with field.override(default):
            assert field.get() == default
            assert field.is_set() == (default is not None)
        assert not field.is_set(), name


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("SGLANG_EXTERNAL_MODEL_PACKAGE", ()),
        ("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", False),
        ("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", True),
        ("SGLANG_HEALTH_CHECK_TIMEOUT", 20),
        ("SGLANG_REQ_WAITING_TIMEOUT", -1),
        ("SGLANG_INIT_NEW_TOKEN_RATIO", 0.7),
        ("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", 0.14),
        ("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", 600),
        ("SGLANG_RETRACT_DECODE_STEPS", 20),
        ("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", 4096),
        ("SGLANG_GRAMMAR_POLL_INTERVAL", 0.005),
        ("SGLANG_GRAMMAR_MAX_POLL_ITERATIONS", 10000),
        ("SGLANG_IMAGE_MAX_PIXELS", 16384 * 28 * 28),
        ("SGLANG_VLM_CACHE_SIZE_MB", 100),
        ("SGLANG_TEST_RETRACT_INTERVAL", 3),
        ("SGLANG_TEST_MAX_RETRY", None),
        ("SGLANG_IS_IN_CI", False),
        ("REQUEST_TIMEOUT", 3),
    ],
)
def test_defaults_of_the_contract(name: str, default: object) -> None:
    assert envs.fields()[name].get() == default


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("YES", True), (" y ", True), ("False", False), ("0", False)]
    + [("no", False), ("n", False), ("", False)],
)
def test_booleans(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("SGLANG_IS_IN_CI", text)
    assert envs.SGLANG_IS_IN_CI.get() is value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("SGLANG_IS_IN_CI", "maybe", "true, 1, yes, y or false"),
        ("SGLANG_RETRACT_DECODE_STEPS", "2.5", "a whole number of at least 0"),
        ("SGLANG_RETRACT_DECODE_STEPS", "-1", "a whole number of at least 0"),
        ("SGLANG_TOOL_STRICT_LEVEL", "3", "from 0 to 2"),
        ("SGLANG_INIT_NEW_TOKEN_RATIO", "nan", "finite number from 0 to 1"),
        ("SGLANG_INIT_NEW_TOKEN_RATIO", "x", "finite number from 0 to 1"),
        ("SGLANG_WARMUP_TIMEOUT", "inf", "a finite number"),
        ("SGLANG_TEST_MAX_RETRY", "-1", "a whole number of at least 0"),
    ],
)
def test_bad_values_name_the_variable_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, allowed: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as caught:
        envs.fields()[name].get()
    assert f"{name}='{text}'" in str(caught.value)
    assert allowed in str(caught.value)


def test_comma_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", " one, two.three ,,")
    assert envs.SGLANG_EXTERNAL_MODEL_PACKAGE.get() == ("one", "two.three")
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("a", "b")):
        assert os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] == "a,b"
    envs.SGLANG_EXTERNAL_MODEL_PACKAGE.set("custom_llm")  # type: ignore[arg-type]
    assert envs.SGLANG_EXTERNAL_MODEL_PACKAGE.get() == ("custom_llm",)
    envs.SGLANG_EXTERNAL_MODEL_PACKAGE.clear()


def test_override_restores_what_was_there_even_after_an_error() -> None:
    envs.SGLANG_TOOL_STRICT_LEVEL.set(1)
    with pytest.raises(KeyError), envs.SGLANG_TOOL_STRICT_LEVEL.override(2):
        assert envs.SGLANG_TOOL_STRICT_LEVEL.get() == 2
        raise KeyError
    assert envs.SGLANG_TOOL_STRICT_LEVEL.get() == 1
    with envs.SGLANG_TOOL_STRICT_LEVEL.override(None):
        assert not envs.SGLANG_TOOL_STRICT_LEVEL.is_set()
    assert envs.SGLANG_TOOL_STRICT_LEVEL.get() == 1
    envs.SGLANG_TOOL_STRICT_LEVEL.clear()
    assert envs.SGLANG_TOOL_STRICT_LEVEL.get() == 0


def test_a_field_is_not_a_value() -> None:
    with pytest.raises(RuntimeError, match=r"SGLANG_IS_IN_CI\.get\(\)"):
        bool(envs.SGLANG_IS_IN_CI)
    with pytest.raises(AttributeError, match=r"SGLANG_IS_IN_CI\.set"):
        envs.SGLANG_IS_IN_CI = True  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        envs.SGLANG_NO_SUCH_VARIABLE  # noqa: B018


def test_typing_errors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_IS_IN_CL", "1")
    monkeypatch.setenv("SGLANG_IS_IN_CI", "1")
    assert "SGLANG_IS_IN_CL" in envs.unknown_names()
    assert "SGLANG_IS_IN_CI" not in envs.unknown_names()


def test_every_field_says_what_it_is_for() -> None:
    assert all(isinstance(f, EnvField) and f.help for f in envs.fields().values())


def names_in_code() -> set[str]:
    """Variables that a module of the package takes through `envs`, or names as a whole text; the declarations do not count."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "environ.py" or not re.search(r"envs\.|environ|env_var", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "envs":
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found & set(envs.fields())


def test_every_variable_is_read_or_says_that_it_has_no_effect() -> None:
    read = names_in_code()
    others = {name for name, field in envs.fields().items() if field.is_read_by_others}
    idle = {name for name, field in envs.fields().items() if not field.has_effect}
    assert not idle & (read | others), "these have an effect: do not declare them without one"
    silent = set(envs.fields()) - read - others - idle
    assert not silent, "nothing reads these: read them, or declare them without effect"


def test_the_page_tells_every_variable_and_those_without_effect_apart() -> None:
    works, _, idle = PAGE.read_text(encoding="utf-8").partition("## Without effect yet")
    for name, field in envs.fields().items():
        told = f"`{name}`" in (works if field.has_effect else idle)
        assert told or name.startswith(("SGLANG_TEST_", "SGLANG_IS_IN_CI", "ONLY_RUN")), name
        assert not (field.has_effect and f"`{name}`" in idle), name


def test_variables_without_use_are_warned_of_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("SGLANG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SGLANG_IS_IN_CI", "1")
    monkeypatch.setenv("SGLANG_IS_IN_CL", "1")
    monkeypatch.setenv("SGLANG_SET_CPU_AFFINITY", "1")
    with caplog.at_level("WARNING"):
        warn_of_variables()
    assert [record.getMessage() for record in caplog.records] == [
        "environment variable SGLANG_IS_IN_CL is set, but nothing reads it",
        "environment variable SGLANG_SET_CPU_AFFINITY is known but has no effect yet",
    ]


@pytest.mark.parametrize(
    ("value", "time"), [("0", r"\d\d:\d\d:\d\d"), ("1", r"\d\d:\d\d:\d\d\.\d{3}")]
)
def test_milliseconds_in_log_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, time: str
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("SGLANG_LOG_MS", value)
    try:
        configure_logging("info", " TP1")
        root.info("a line")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert re.fullmatch(rf"\[\d+-\d\d-\d\d {time} TP1\] a line\n", capsys.readouterr().err)
