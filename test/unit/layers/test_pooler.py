"""Pooling of embeddings and scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.pooler import CrossEncodingPooler, Pooler, PoolingType
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode


def _batch(dimensions=None):
    return ForwardBatch(
        ForwardMode.EXTEND,
        batch_size=2,
        extend_seq_lens=torch.tensor([3, 2], dtype=torch.int32),
        extend_seq_lens_cpu=[3, 2],
        dimensions=dimensions,
    )


@pytest.mark.parametrize(("kind", "rows"), [(PoolingType.LAST, [2, 4]), (PoolingType.CLS, [0, 3])])
def test_rows_and_normalisation(kind, rows):
    hidden = torch.randn(5, 8)
    assert torch.equal(Pooler(kind, normalize=False)(hidden, _batch()).embeddings, hidden[rows])
    unit = Pooler(kind, normalize=True)(hidden, _batch()).embeddings
    torch.testing.assert_close(unit, hidden[rows] / hidden[rows].norm(dim=-1, keepdim=True))


def test_widths():
    hidden = torch.randn(5, 8)
    pooler = Pooler(PoolingType.LAST, normalize=True)
    same = pooler(hidden, _batch([4, 4])).embeddings
    torch.testing.assert_close(same, torch.nn.functional.normalize(hidden[[2, 4], :4], dim=-1))
    mixed = pooler(hidden, _batch([4, 6])).embeddings
    assert [len(row) for row in mixed] == [4, 6]
    torch.testing.assert_close(torch.stack([row.norm() for row in mixed]), torch.ones(2))


def test_cross_encoding():
    hidden = torch.randn(5, 8)
    sigmoid = SimpleNamespace(
        sbert_ce_default_activation_function="torch.nn.modules.activation.Sigmoid"
    )
    head = torch.nn.Linear(8, 1)
    pooled = CrossEncodingPooler(sigmoid, head, lambda rows, batch: rows[0])
    scores = pooled(hidden, _batch()).embeddings
    torch.testing.assert_close(scores, torch.sigmoid(head(hidden[[0, 3]])).squeeze(-1))
    alone = CrossEncodingPooler(SimpleNamespace(), lambda rows: rows.mean(0))
    torch.testing.assert_close(alone(hidden, _batch()).embeddings[1], hidden[3:].mean(0))
    with pytest.raises(ValueError, match="os.system"):
        CrossEncodingPooler(SimpleNamespace(sbert_ce_default_activation_function="os.system"), head)
