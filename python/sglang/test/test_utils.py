"""What tests of models and servers share: environment, names of small models, similarity of texts and vectors."""

from __future__ import annotations

import logging
import unittest
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sglang.srt.environ import envs
from sglang.test.server_process import DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH, popen_launch_server

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH",
    "DEFAULT_URL_FOR_TEST",
    "CustomTestCase",
    "calculate_rouge_l",
    "get_similarities",
    "is_in_ci",
    "popen_launch_server",
]

logger = logging.getLogger(__name__)

DEFAULT_URL_FOR_TEST = "http://127.0.0.1:21000"


def is_in_ci() -> bool:
    """Whether the variable SGLANG_IS_IN_CI says so."""
    return envs.SGLANG_IS_IN_CI.get()


class CustomTestCase(unittest.TestCase):
    """The base class of registered tests.

    With SGLANG_TEST_MAX_RETRY a test method that fails runs again, so many times at most, after the same `setUp`. Skips and failures of
    subtests stand at once.
    """

    def _callTestMethod(self, method: Callable[[], object]) -> None:
        retries = envs.SGLANG_TEST_MAX_RETRY.get() or 0
        for attempt in range(retries):
            try:
                method()
                return
            except unittest.SkipTest:
                raise
            except Exception as error:  # a boundary: a test may fail in any way
                logger.warning(
                    "%s failed (%s: %s); run %d of %d follows",
                    self.id(),
                    type(error).__name__,
                    error,
                    attempt + 2,
                    retries + 1,
                )
        method()


def calculate_rouge_l(
    output_strs_list1: Sequence[str], output_strs_list2: Sequence[str]
) -> list[float]:
    """ROUGE-L F scores of pairs of texts: 1.0 for equal ones, from their longest common subsequence of characters.

    Raises ValueError when the lists differ in length.
    """
    pairs = zip(output_strs_list1, output_strs_list2, strict=True)
    return [_rouge_l(one, other) for one, other in pairs]


def get_similarities(vec1: object, vec2: object) -> torch.Tensor:
    """Cosine similarity of two vectors [D], float32, as a scalar tensor."""
    import torch

    one, other = (torch.as_tensor(vec, dtype=torch.float32) for vec in (vec1, vec2))
    return torch.nn.functional.cosine_similarity(one, other, dim=0)


def _rouge_l(one: str, other: str) -> float:
    if one == other:
        return 1.0
    common = _common_subsequence(one, other)
    return 2.0 * common / (len(one) + len(other))


def _common_subsequence(one: str, other: str) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (
        len(other) + 1
    )  # for the beginning of `one` so far and every beginning of `other`
    for letter in one:
        diagonal = 0
        for place, candidate in enumerate(other, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if letter == candidate else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
