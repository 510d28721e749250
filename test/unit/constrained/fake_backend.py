"""A grammar backend without a library, whose grammars can be slow, fatal or greedy on request."""

from __future__ import annotations

import os
import time

import numpy as np

from sglang.srt.constrained.base import BackendRecipe, InvalidGrammarError


def make_recipe(tokenizer, vocab_size, eos_ids, options) -> BackendRecipe:
    if tokenizer == "unsupported":
        raise ValueError("cannot read this tokenizer")
    return BackendRecipe("fake_backend:from_payload", b"payload")


def from_payload(payload: bytes) -> FakeBackend:
    assert payload == b"payload"
    return FakeBackend()


class FakeBackend:
    """Understands what to do from the text."""

    def compile(self, kind: str, text: str) -> FakeCompiled:
        if text == "invalid":
            raise InvalidGrammarError("bad text")
        if text == "print":
            print("noise on stdout")
        if text.startswith("sleep"):
            time.sleep(float(text.split()[1]))
        if text == "spin":
            sum(range(10**12))  # native code that never looks at signals
        if text == "crash":
            os.abort()
        if text == "memory":
            bytearray(64 << 30)
        return FakeCompiled(f"{kind}:{text}:{os.getpid()}")

    def load(self, data: bytes) -> FakeCompiled:
        if b"unloadable" in data:
            raise RuntimeError("unexpected")
        return FakeCompiled(data.decode())


class FakeCompiled:
    def __init__(self, name: str) -> None:
        self.name = name

    def new_matcher(self) -> FakeMatcher:
        return FakeMatcher(self.name)

    def dump(self) -> bytes:
        return self.name.encode()


class FakeMatcher:
    def __init__(self, name: str) -> None:
        self.name = name

    def fill_mask(self, mask: np.ndarray) -> None:
        mask[:] = 0 if ":nothing:" in self.name else -1
