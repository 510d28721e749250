"""The files of a new model: copies of another model's, renamed. Nothing that exists is overwritten."""

from __future__ import annotations

import ast
import importlib.util
import json
import keyword
import re
from pathlib import Path

from sglang.srt.models.common.entry_class import names_in_text
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.media import family_of
from sglang.verify.pruning import prune
from sglang.verify.scaffold_media import PROCESSOR_ENTRY, media_model_text, media_test_text
from sglang.verify.tiny import for_architecture, tiny_config

_SUFFIXES = ("ForCausalLM", "LMHeadModel", "Model")
DOCS_TABLE = Path("docs/supported_models/text_generation/generative_models.md")

_DOCS_HEAD = """# Generative language models

| Family (example) | Architecture | File | Features | Tiny configurations |
|---|---|---|---|---|
"""

_TEST = '''"""{camel}: the tiny model in every kind of form against transformers, and its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang.srt.configs.model_config import ModelConfig
from sglang.verify.coverage import measure_coverage
from sglang.verify.forms import Form, forms_named
from sglang.verify.proof import Proof
from sglang.verify.tiny import write_tiny

FORMS = forms_named(
    ["whole prefill", "chunks of 16, page 1", "full hit, page 1", "mixed with prefill, page 16"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny({tiny}, tmp_path_factory.mktemp("{name}"))


@pytest.fixture(scope="module")
def proof(folder: Path) -> Proof:
    return Proof(str(folder))


def test_is_served_by_its_own_class(proof: Proof) -> None:
    assert type(proof.subject(1).model).__name__ == "{architecture}"


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_form(proof: Proof, form: Form) -> None:
    result = proof.run(form)
    assert result.passed, result.detail


def test_every_tensor_and_parameter_is_accounted_for(folder: Path) -> None:
    found = measure_coverage(str(folder), ModelConfig(str(folder), dtype="float32"))
    assert found.passed, (found.unfilled, found.not_accounted)
'''

_PYPROJECT = """[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "sglang-{dashed}"
version = "0.1.0"
dependencies = ["sglang"]

[project.entry-points."sglang.models"]
{name} = "{package}"

[tool.setuptools]
packages = ["{package}"]

[tool.setuptools.package-data]
{package} = ["*.json"]
"""

_README = """# {architecture} for sglang

`pip install -e .` is enough: every process of sglang finds the class. The model is `{package}/{name}.py`, its tiny configuration
`{package}/{name}.json`.

| architecture | file | like |
|---|---|---|
| `{architecture}` | `{package}/{name}.py` | `{like}` |

```
sglang verify --tiny {architecture}
pytest tests
```
"""


class Scaffold:
    """A new model `name` that starts as a copy of the class that serves `like` (an architecture or a model_type).

    Raises ConfigError for a name that is no Python module name or is taken, and for an unknown `like`.
    """

    def __init__(self, name: str, like: str) -> None:
        self.name = _module_name(name)
        self.camel = "".join(part.capitalize() for part in self.name.split("_"))
        self._raw = tiny_config(like)
        self.like = self._raw["architectures"][0]
        self.takes_media = family_of([self.like]) is not None
        self.architecture = (
            f"{self.camel}For{'ConditionalGeneration' if self.takes_media else 'CausalLM'}"
        )
        if self.architecture in ModelRegistry.models:
            raise ConfigError(
                f"{self.architecture} is already served; choose another name than {name!r}"
            )
        self._source = _source_of(self.like)

    def write_into(self, root: Path) -> list[Path]:
        """Files inside a checkout; returns what was written. Raises ConfigError when there is none or a file exists."""
        if not (root / "python/sglang/srt/models").is_dir():
            raise ConfigError(
                f"{str(root)!r} is no checkout of this project (it has no python/sglang/srt/models); give one with "
                "--root, or write a package of your own with --plugin DIR"
            )
        if self.takes_media:
            raise ConfigError(
                f"{self.like} takes media: begin with --plugin DIR; docs/add_a_model_that_sees.md has the places of its pieces in this repository"
            )
        files = {
            root / f"python/sglang/srt/models/{self.name}.py": self.model_text(),
            root / f"python/sglang/verify/tiny_configs/{self.name}.json": self.config_text(),
            root / f"test/models/test_{self.name}.py": self.test_text(self.architecture),
        }
        written = _write_all(files)
        docs = root / DOCS_TABLE
        docs.parent.mkdir(parents=True, exist_ok=True)
        docs.write_text(_with_row(docs, self.docs_row()), encoding="utf-8")
        return [*written, docs]

    def write_plugin(self, root: Path) -> list[Path]:
        """An installable package with one entry point. Raises ConfigError when a file exists."""
        package = f"sglang_{self.name}"
        names = {
            "name": self.name,
            "package": package,
            "dashed": self.name.replace("_", "-"),
            "architecture": self.architecture,
            "like": self.like,
        }
        return _write_all(
            {
                root / "pyproject.toml": self._pyproject().format(**names),
                root / "README.md": _README.format(**names),
                root / package / "__init__.py": f'"""{self.architecture} for sglang."""\n',
                root / package / f"{self.name}.py": self.model_text(),
                root / package / f"{self.name}.json": self.config_text(),
                root / "tests" / f"test_{self.name}.py": self.test_text(self.architecture),
            }
        )

    def _pyproject(self) -> str:
        if not self.takes_media:
            return _PYPROJECT
        return _PYPROJECT.replace("\n[tool.setuptools]", f"{PROCESSOR_ENTRY}\n[tool.setuptools]", 1)

    def next_steps(self, plugin: str | None) -> list[str]:
        """What to run."""
        verify = f"sglang verify --tiny {self.architecture}"
        if plugin is not None:
            return [f"pip install -e {plugin}", verify, f"pytest {plugin}/tests"]
        table = "python scripts/generate_supported_models.py"
        return [verify, f"pytest test/models/test_{self.name}.py", table]

    def model_text(self) -> str:
        """The source's text with its classes renamed and one entry class; for a model with media, classes that extend the source's."""
        if self.takes_media:
            return media_model_text(self.architecture, self.camel, self.like)
        text = self._source.read_text(encoding="utf-8")
        entries = names_in_text(self._source)
        text = _set_entry(text, ast.parse(text), self.like)
        text = prune(text, self.like)
        tree = ast.parse(text)
        text = _set_docstring(text, tree, f"{self.camel}, so far a copy of `{self._source.name}`.")
        defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        renamed = self._renamed(defined, entries)
        pattern = re.compile(r"\b(" + "|".join(sorted(renamed, key=len, reverse=True)) + r")\b")
        head, docstring, body = _split_docstring(text)
        return head + docstring + pattern.sub(lambda match: renamed[match.group()], body)

    def _renamed(self, defined: list[str], entries: list[str]) -> dict[str, str]:
        """New names of the file's classes. Where two would get one name, that of the copied architecture keeps it."""
        own = _prefix(self.like)
        prefixes = [own, *sorted((_prefix(entry) for entry in entries), key=len, reverse=True)]
        renamed = {self.like: self.architecture}
        for name in sorted(defined, key=lambda name: not name.startswith(own)):
            prefix = next((p for p in prefixes if name.startswith(p) and name != p), None)
            if prefix is not None and name not in renamed:
                rest = name.removeprefix(prefix)
                while self.camel + rest in renamed.values():
                    rest = f"Base{rest}"
                renamed[name] = self.camel + rest
        return renamed

    def config_text(self) -> str:
        """The tiny configuration: that of the other model under the new architecture."""
        return json.dumps(for_architecture(self._raw, self.architecture), indent=2) + "\n"

    def test_text(self, tiny: str) -> str:
        if self.takes_media:
            return media_test_text(self.architecture, self.camel, self.name)
        return _TEST.format(
            camel=self.camel,
            name=self.name,
            architecture=self.architecture,
            tiny=json.dumps(tiny),
        )

    def docs_row(self) -> str:
        features = f"a copy of `{self.like}` so far"
        return f"| {self.camel} | `{self.architecture}` | `{self.name}.py` | {features} | `{self.name}` |"


def _module_name(name: str) -> str:
    stem = name.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem)
    module = module.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} is no name for a model file; use letters, digits and _, as in my_model"
        )
    return module


def _prefix(architecture: str) -> str:
    for suffix in _SUFFIXES:
        if architecture.endswith(suffix) and architecture != suffix:
            return architecture.removesuffix(suffix)
    return architecture


def _source_of(architecture: str) -> Path:
    """The model file of an architecture, found without importing it."""
    entries = {entry.architecture: entry for entry in ModelRegistry.entries()}
    if architecture not in entries:
        raise ConfigError(
            f"no model file serves {architecture}, so there is nothing to copy; served are {', '.join(entries)}"
        )
    module = entries[architecture].path.partition(":")[0]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the file of {module}, which serves {architecture}, cannot be found")
    return Path(spec.origin)


def _set_entry(text: str, tree: ast.Module, architecture: str) -> str:
    """The last statement names one class."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "EntryClass" for target in targets):
            lines = text.splitlines(keepends=True)
            return "".join(lines[: node.lineno - 1]) + f"EntryClass = {architecture}\n"
    raise ConfigError("the model file has no EntryClass to copy")


def _set_docstring(text: str, tree: ast.Module, first_line: str) -> str:
    """The module's docstring with another first line; equations and differences stay, they are what the author edits."""
    old = ast.get_docstring(tree, clean=False) or ""
    rest = old.partition("\n")[2]
    return text.replace(old, f"{first_line}\n{rest}" if rest else first_line, 1)


def _split_docstring(text: str) -> tuple[str, str, str]:
    """What comes before the module's docstring, the docstring, and the code."""
    first = ast.parse(text).body[0]
    lines = text.splitlines(keepends=True)
    return (
        "".join(lines[: first.lineno - 1]),
        "".join(lines[first.lineno - 1 : first.end_lineno]),
        "".join(lines[first.end_lineno or 0 :]),
    )


def _write_all(files: dict[Path, str]) -> list[Path]:
    taken = [str(path) for path in files if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} exists already; remove it or choose another name")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _with_row(path: Path, row: str) -> str:
    """The docs table with one row more, behind its last row."""
    if not path.is_file():
        return f"{_DOCS_HEAD}{row}\n"
    lines = path.read_text(encoding="utf-8").splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("|"))
    return "\n".join([*lines[: last + 1], row, *lines[last + 1 :]]) + "\n"
