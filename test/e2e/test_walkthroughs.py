"""The guides' ways to bring a model of one's own, done as a reader does them, with the effect on the numbers.

The model is the guides' example: the square root of every positive logit. Each way must give the log probabilities that the
formula gives on the base model's logits, not only text.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
from server import ROOT, running

DEMO = ROOT / "python" / "sglang" / "demo_model"
PROMPT_IDS = [[20, 33, 47, 59, 61, 80], [101, 102, 103]]
ALL_IDS = list(range(1024))  # the whole vocabulary of the demo model
GUIDE = ROOT / "docs" / "supported_models" / "extending" / "support_new_models.md"
ENGINE_CODE = """\
import asyncio
import json
import sys

import sglang as sgl


async def ask(llm, ids):
    params = {{"temperature": 0, "max_new_tokens": 1}}
    return await llm.async_generate(
        input_ids=ids, sampling_params=params, return_logprob=True, token_ids_logprob={all_ids}
    )


def run():
    llm = sgl.Engine(model_path=sys.argv[1], device="cpu", max_total_tokens=512)
    items = asyncio.run(ask(llm, {prompts}))
    llm.shutdown()
    print(json.dumps([item["meta_info"]["output_token_ids_logprobs"][0] for item in items]))
"""


def block(name: str) -> str:
    """The guide's block that begins with `# name`."""
    return next(
        body
        for body in re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(), re.S)
        if body.startswith(f"# {name}\n")
    )


def wrapper(family: str) -> str:
    """The guide's class; for another family, over that family's class."""
    source = block("llama_wrapper.py")
    if family == "qwen3":
        source = source.replace("LlamaForCausalLM", "Qwen3ForCausalLM")
        source = source.replace("models.llama ", "models.qwen3 ")
    return source


def checkpoint(folder: Path, architecture: str, family: str) -> Path:
    """The demo model under another architecture name; as a Llama it loses its two extra norms."""
    folder.mkdir()
    for path in DEMO.iterdir():
        if path.name not in ("config.json", "model.safetensors", "README.md"):
            (folder / path.name).symlink_to(path)
    config = json.loads((DEMO / "config.json").read_text())
    if family == "llama":
        _write_llama_weights(folder / "model.safetensors")
        config["model_type"] = "llama"
    else:
        (folder / "model.safetensors").symlink_to(DEMO / "model.safetensors")
    config |= {"architectures": [architecture], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write_llama_weights(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(DEMO / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.endswith(("q_norm.weight", "k_norm.weight"))}
    save_file(kept, path, metadata={"format": "pt"})


def run_script(folder: Path, source: str, *arguments: str) -> list[dict[int, float]]:
    """Write run.py, run it as a user does, and read the log probabilities of the whole vocabulary."""
    done = start_script(folder, source, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return [by_id(rows) for rows in json.loads(done.stdout.splitlines()[-1])]


def start_script(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess:
    script = folder / "run.py"
    script.write_text(source)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **on_path(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def engine_code() -> str:
    return ENGINE_CODE.format(all_ids=ALL_IDS, prompts=PROMPT_IDS)


def by_id(rows: list) -> dict[int, float]:
    return {token: logprob for logprob, token, *_ in rows}


def transformed(base: dict[int, float], logits: dict[int, float]) -> dict[int, float]:
    """Log probabilities after the square root of positive logits; `logits` are the base model's."""
    roots = {i: math.sqrt(x) if x > 0 else x for i, x in logits.items()}
    total = math.log(sum(math.exp(x) for x in roots.values()))
    return {i: x - total for i, x in roots.items()}


def reference_logits(model: Path, family: str) -> list[dict[int, float]]:
    """transformers' logits after each prompt."""
    import torch
    import transformers

    cls = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]
    reference = getattr(transformers, cls).from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        rows = [reference(torch.tensor([ids])).logits[0, -1] for ids in PROMPT_IDS]
    return [dict(enumerate(row.tolist())) for row in rows]


class World:
    """A checkpoint that asks for `LlamaWrapper`, and what its log probabilities must be."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family = family
        self.folder = folder
        self.model = checkpoint(folder / "ckpt", "LlamaWrapper", family)
        logits = reference_logits(self.model, family)
        self.plain = [_log_softmax(row) for row in logits]
        self.rooted = [
            transformed(plain, row) for plain, row in zip(self.plain, logits, strict=True)
        ]

    def check(self, got: list[dict[int, float]]) -> None:
        for mine, rooted, plain in zip(got, self.rooted, self.plain, strict=True):
            assert mine.keys() == rooted.keys()
            worst = max(abs(mine[i] - rooted[i]) for i in rooted)
            assert worst < 2e-3, f"not the square root of the logits: {worst}"
            # The test would prove nothing if the transformation hardly changed the numbers.
            assert max(abs(plain[i] - rooted[i]) for i in rooted) > 0.5


def _log_softmax(row: dict[int, float]) -> dict[int, float]:
    total = math.log(sum(math.exp(x) for x in row.values()))
    return {i: x - total for i, x in row.items()}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("llama_only"), "llama")


def work_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


# --- run.py


def test_the_guide_as_printed(llama: World, tmp_path: Path) -> None:
    folder = work_folder(tmp_path)
    (folder / "llama_wrapper.py").write_text(block("llama_wrapper.py"))
    (folder / "llama_ckpt").symlink_to(llama.model)
    done = start_script(folder, block("run.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition(" -> ") for line in done.stdout.splitlines() if " -> " in line]
    assert [prompt for prompt, _, _ in lines] == ["Hello, my name is", "The capital of France is"]
    assert all(text for _, _, text in lines)


def test_class_in_its_own_file_registered_at_module_level(world: World, tmp_path: Path) -> None:
    """The guide's layout: llama_wrapper.py beside run.py, `.update` before the Engine, asyncio.run."""
    folder = work_folder(tmp_path)
    (folder / "llama_wrapper.py").write_text(wrapper(world.family))
    source = engine_code() + textwrap.dedent(
        """
        from llama_wrapper import LlamaWrapper
        from sglang.srt.models.registry import ModelRegistry

        ModelRegistry.models.update({"LlamaWrapper": LlamaWrapper})

        if __name__ == "__main__":
            run()
        """
    )
    world.check(run_script(folder, source, str(world.model)))


def test_class_in_the_script_registered_under_main(llama: World, tmp_path: Path) -> None:
    source = (
        wrapper("llama")
        + engine_code()
        + textwrap.dedent(
            """
            from sglang.srt.models.registry import ModelRegistry

            if __name__ == "__main__":
                ModelRegistry.models["LlamaWrapper"] = LlamaWrapper
                run()
            """
        )
    )
    llama.check(run_script(work_folder(tmp_path), source, str(llama.model)))


def test_class_made_by_a_function_at_module_level(llama: World, tmp_path: Path) -> None:
    """Its path cannot be imported, but the worker runs the same line."""
    folder = work_folder(tmp_path)
    body = textwrap.indent(wrapper("llama"), "    ")
    source = f"def make():\n{body}    return LlamaWrapper\n\n\n" + engine_code()
    source += textwrap.dedent(
        """
        from sglang.srt.models.registry import ModelRegistry

        ModelRegistry.models["LlamaWrapper"] = make()

        if __name__ == "__main__":
            run()
        """
    )
    llama.check(run_script(folder, source, str(llama.model)))


def test_class_that_workers_cannot_import_is_named(llama: World, tmp_path: Path) -> None:
    folder = work_folder(tmp_path)
    source = engine_code() + "\n\ndef main():\n"
    source += textwrap.indent(wrapper("llama"), "    ")
    source += (
        "    from sglang.srt.models.registry import ModelRegistry\n"
        '    ModelRegistry.models["LlamaWrapper"] = LlamaWrapper\n'
        '    run()\n\n\nif __name__ == "__main__":\n    main()\n'
    )
    done = start_script(folder, source, str(llama.model))
    assert done.returncode != 0
    assert (
        "__main__:main.<locals>.LlamaWrapper, which a worker process cannot import" in done.stderr
    )
    assert "at the top level of the script or of a module" in done.stderr


def test_launch_server_from_a_script(llama: World, tmp_path: Path) -> None:
    folder = work_folder(tmp_path)
    (folder / "llama_wrapper.py").write_text(wrapper("llama"))
    source = textwrap.dedent(
        """
        import sys

        from llama_wrapper import LlamaWrapper
        from sglang.srt.entrypoints.http_server import launch_server
        from sglang.srt.models.registry import ModelRegistry
        from sglang.srt.server_args import prepare_server_args

        ModelRegistry.models["LlamaWrapper"] = LlamaWrapper

        if __name__ == "__main__":
            launch_server(prepare_server_args(sys.argv[1:]))
        """
    )
    script = folder / "run.py"
    script.write_text(source)
    check_server(llama, tmp_path, on_path(folder), program=[sys.executable, str(script)])


# --- packages, with the plain command line


def check_server(
    world: World, tmp_path: Path, env: dict[str, str], program: list[str] | None = None
) -> str:
    """Serve the checkpoint, compare the numbers, return the log."""
    args = ["--model-path", str(world.model), "--device", "cpu", "--max-total-tokens", "512"]
    log = tmp_path / "log"
    with running(args, log, env, program) as server:
        status, answers = server.post(
            "/generate",
            {
                "input_ids": PROMPT_IDS,
                "sampling_params": {"temperature": 0, "max_new_tokens": 1},
                "return_logprob": True,
                "token_ids_logprob": [ALL_IDS] * len(PROMPT_IDS),
            },
        )
    assert status == 200, answers
    world.check([by_id(item["meta_info"]["output_token_ids_logprobs"][0]) for item in answers])
    return log.read_text()


def write_package(site: Path, name: str, family: str) -> None:
    package = site / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "llama_wrapper.py").write_text(wrapper(family))


def on_path(site: Path) -> dict[str, str]:
    paths = [str(site), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def test_installed_package_named_by_the_environment(llama: World, tmp_path: Path) -> None:
    write_package(tmp_path / "site", "custom_llm", "llama")
    env = {**on_path(tmp_path / "site"), "SGLANG_EXTERNAL_MODEL_PACKAGE": "custom_llm"}
    log = check_server(llama, tmp_path, env)
    assert "LlamaWrapper is served by the package custom_llm" in log


@pytest.mark.skipif(
    find_spec("pip") is None or find_spec("setuptools") is None, reason="needs pip and setuptools"
)
def test_installed_plugin_needs_nothing_else(llama: World, tmp_path: Path) -> None:
    """`pip install` of a package with an entry point; a broken neighbour is named and left out."""
    source, site = tmp_path / "source", tmp_path / "site"
    write_package(source, "my_plugin", "llama")
    (source / "pyproject.toml").write_text(block("pyproject.toml"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *options, str(source)], check=True, timeout=120)
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sglang.models]\nbroken = no_such_package_at_all\n")
    log = check_server(llama, tmp_path, on_path(site))
    assert "LlamaWrapper is served by the plug-in 'my-plugin' of my-plugin 1.0 (my_plugin)" in log
    assert log.count("the plug-in 'broken' of broken 1.0") == 1
