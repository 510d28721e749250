"""What holds for the whole suite: which tests stay together, and which need a newer reference.

Several workers share the suite by groups (`--dist loadgroup`): tests of one file, as fixtures of a module are made once; except the
model proofs, whose unit is one model.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest

# Parametrised fixture that makes one model's proof.
_MODEL = "proof"

# Parts of test ids that transformers 5.20, the newest for Python 3.10, cannot be the reference of.
_OLD_TRANSFORMERS = version("transformers").split(".")[:2] < ["5", "21"]
_FAULTS_OF_5_20 = {
    "minicpm3": "builds no MiniCPM3 whose longrope has no factor",
    "test_mla_models.py::test_pools_by_kind": "builds no MiniCPM3 whose longrope has no factor",
    "test_mla_models.py::test_two_ranks": "builds no MiniCPM3 whose longrope has no factor",
    "test_published_names[qwen2-audio]": "saves Qwen2-Audio under other names",
}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        model = callspec.params.get(_MODEL) if callspec is not None else None
        group = str(item.path) if model is None else f"{item.path}-{model}"
        item.add_marker(pytest.mark.xdist_group(group))
        for part, fault in _FAULTS_OF_5_20.items():
            if _OLD_TRANSFORMERS and part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"this transformers {fault}"))
