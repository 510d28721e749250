"""Which tests stay together when several workers share the suite (`--dist loadgroup`).

Tests of one file, as fixtures of a module are made once; except the model proofs, whose unit is one model.
"""

from __future__ import annotations

import pytest

# Parametrised fixture that makes one model's proof.
_MODEL = "proof"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        model = callspec.params.get(_MODEL) if callspec is not None else None
        group = str(item.path) if model is None else f"{item.path}-{model}"
        item.add_marker(pytest.mark.xdist_group(group))
