"""Stand-ins for modules: who asks for more than the one name gets the real module, whenever that is."""

from __future__ import annotations

import importlib
import sys

import pytest

from sglang.srt.utils import light_transformers
from sglang.srt.utils.light_transformers import Cut, light_imports

PROVIDER = "class Base: pass\nTABLE = {'a': 1}\nclass Other: pass\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `heavies` whose `provider` is to be spared; writes a module and imports it within `light_imports`."""
    folder = tmp_path / "heavies"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "provider.py").write_text(PROVIDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(light_transformers, "import_model_names", lambda: None)

    def import_user(text, name="TABLE", module="user"):
        monkeypatch.setattr(
            light_transformers, "CUTS", (Cut("heavies.user", "heavies.provider", name),)
        )
        (folder / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        with light_imports():
            return importlib.import_module(f"heavies.{module}")

    yield import_user
    for name in [name for name in sys.modules if name.split(".")[0] == "heavies"]:
        del sys.modules[name]


def is_imported():
    return "heavies.provider" in sys.modules


def test_a_table_is_there_when_it_is_used(package):
    user = package("from .provider import TABLE\ndef knows(key): return key in TABLE\n")
    assert not is_imported()
    later = user.TABLE
    assert user.knows("a") and not user.knows("b")
    assert is_imported() and user.TABLE is sys.modules["heavies.provider"].TABLE
    # Who took it over before goes on with the same contents.
    assert (len(later), list(later), later["a"], list(later.keys())) == (1, ["a"], 1, ["a"])


def test_a_class_can_be_asked_about_and_derived_from(package):
    user = package("from .provider import Base\ndef check(x): return isinstance(x, Base)\n", "Base")
    assert not is_imported()
    later = user.Base
    assert not user.check(3) and user.check(user.Base())
    real = sys.modules["heavies.provider"].Base
    assert user.Base is real

    class Derived(later):
        pass

    assert Derived.__mro__[1] is real and issubclass(Derived, later)
    assert isinstance(later(), real)
    assert (later | None) == (real | None) and (None | later) == (None | real)


def test_an_annotation_needs_nothing(package, monkeypatch):
    cut = Cut("heavies.user", "heavies.provider", "Base", only_annotates=True)
    monkeypatch.setattr(sys.modules[__name__], "Cut", lambda *_: cut)
    user = package("from .provider import Base\ndef check(x: Base | None): return x\n", "Base")
    assert not is_imported() and user.check(3) == 3


def test_a_user_that_needs_the_class_at_once_gets_it(package):
    user = package("from .provider import Base\nclass Mine(Base): pass\n", "Base")
    assert user.Mine.__mro__[1] is sys.modules["heavies.provider"].Base


@pytest.mark.parametrize(
    "text",
    [
        "from .provider import TABLE, Other\n",
        "from . import provider\nOther = provider.Other\n",
        "import heavies.provider as provider\nOther = provider.Other\n",
    ],
)
def test_a_user_that_wants_more_gets_the_real_module(package, text):
    user = package(text)
    real = sys.modules["heavies.provider"]
    assert user.Other is real.Other and real.__file__.endswith("provider.py")


def test_others_get_the_real_name(package):
    other = package("from .provider import TABLE\n", module="other")
    assert other.TABLE is sys.modules["heavies.provider"].TABLE


def test_what_is_imported_already_stays(package):
    real = importlib.import_module("heavies.provider")
    user = package("from .provider import TABLE\n")
    assert user.TABLE is real.TABLE and sys.modules["heavies.provider"] is real


def test_after_an_error_nothing_stands_in(package):
    with pytest.raises(ZeroDivisionError):
        package("from .provider import TABLE\n1 / 0\n")
    assert not is_imported()
    assert importlib.import_module("heavies.provider").TABLE == {"a": 1}


def test_one_within_another_changes_nothing(package):
    text = "from sglang.srt.utils.light_transformers import light_imports\nwith light_imports():\n    from .provider import TABLE\n"
    user = package(text)
    assert not is_imported()
    assert "a" in user.TABLE
