"""The accuracy benchmarks on generated data: a server's answers are those of transformers, item by item."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

from sglang import bench_serving
from sglang.test import twin_servers

_BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmark"
# Tokens of the answers; a random twin would never end.
_SHORT = ["--max-new-tokens", "6"]


def load(benchmark: str, name: str) -> Callable[[list[str]], int]:
    """`main` of a script."""
    folder = str(_BENCHMARKS / benchmark)
    sys.path.insert(0, folder)
    try:
        sys.modules.pop(name, None)  # two benchmarks have a script of the same name
        return importlib.import_module(name).main
    finally:
        sys.path.remove(folder)


class TestAccuracyRunners(twin_servers.ComparedWithTransformers):
    api_key = ""  # the benchmarks know none

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        host, _, port = self.base_url.rpartition(":")
        self.target = ["--host", host, "--port", port]

    def run_script(self, benchmark: str, name: str, arguments: list[str]) -> str:
        """What it prints."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(load(benchmark, name)(arguments), 0, out.getvalue())
        return out.getvalue()

    def test_mmmu_answers_equal_those_of_transformers(self) -> None:
        self.run_script("mmmu", "generate", ["data", "--num-items", "10"])
        data = ["--dataset-path", "data", *_SHORT]
        ours = self.run_script("mmmu", "bench_sglang", [*data, *self.target, "--concurrency", "4"])
        theirs = self.run_script("mmmu", "bench_hf", [*data, "--model-path", self.model])
        name = Path(self.model).name
        files = ["answer_sglang.json", f"{name}_answer_hf.json"]
        printed = self.run_script("mmmu", "compare", files)
        self.assertIn("10 of 10 answers are equal", printed)
        self.assertIn("Overall-Drawings", ours)
        rows = json.loads(Path(files[0]).read_text())
        right = sum(row["is_right"] for row in rows)
        self.assertIn(f"Overall accuracy: {right / 10}", ours)
        self.assertIn(f"Overall accuracy: {right / 10}", theirs)
        # An answer that was changed by hand is found.
        rows[3]["response"] += "!"
        Path("changed.json").write_text(json.dumps(rows))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(load("mmmu", "compare")(["changed.json", files[1]]), 1)
        self.assertIn("9 of 10 answers are equal", out.getvalue())

    def test_word_problems_are_answered_like_transformers(self) -> None:
        arguments = ["--data-path", "generated", "--num-shots", "0", "--num-questions", "6"]
        arguments += [*_SHORT, *self.target, "--reference", self.model]
        printed = self.run_script("gsm8k", "bench_sglang", arguments)
        self.assertIn("6 of 6 answers equal those of transformers", printed)
        self.assertRegex(printed, r"Accuracy: \d\.\d{3}\nInvalid: ")
        line = json.loads(Path("result.jsonl").read_text())
        self.assertEqual((line["task"], line["num_requests"]), ("gsm8k", 6))

    def test_choices_are_answered_like_transformers(self) -> None:
        arguments = ["--data_dir", "generated", "-k", "0", *self.target]
        printed = self.run_script("mmlu", "bench_sglang", [*arguments, "--reference", self.model])
        self.assertIn("40 of 40 answers equal those of transformers", printed)
        self.assertIn("subject: arithmetic, #q: 40, acc:", printed)
        rows = json.loads(Path("results", "answers.json").read_text())
        self.assertEqual({row["subject"] for row in rows}, {"arithmetic"})

    def test_pictures_are_measured(self) -> None:
        """`bench_serving` with pictures: every request is answered, and the server's count of tokens is in the record."""
        flags = "--num-prompts 4 --random-input-len 20 --random-output-len 3 --disable-tqdm".split()
        flags += ["--base-url", self.base_url, "--output-file", "bench.jsonl"]
        pictures = "--dataset-name image --image-count 2 --image-resolution 64x48".split()
        self.run_script("mmmu", "generate", ["data", "--num-items", "4"])
        questions = ["--dataset-name", "mmmu", "--dataset-path", "data"]
        for backend in ("sglang", "sglang-oai-chat"):
            for dataset in (pictures, questions):
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    code = bench_serving.main(["--backend", backend, *dataset, *flags])
                self.assertEqual(code, 0, out.getvalue())
                self.assertIn("Total input vision tokens:", out.getvalue())
        rows = [json.loads(line) for line in Path("bench.jsonl").read_text().splitlines()]
        self.assertEqual([row["completed"] for row in rows], [4] * 4)
        # Both routes render the same template.
        vision = [row["total_input_vision_tokens"] for row in rows]
        self.assertEqual(vision[:2], vision[2:])
        self.assertGreaterEqual(vision[0], 4 * 2)


if __name__ == "__main__":
    unittest.main()
