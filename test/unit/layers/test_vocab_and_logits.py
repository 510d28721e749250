"""Embedding tables, logits and prompt log probabilities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sglang.srt.layers import logits_processor, vocab_parallel_embedding
from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor
from sglang.srt.layers.parameter import unfilled_shards
from sglang.srt.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
    pad_vocab_size,
)
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.platforms import CpuPlatform
from sglang.srt.utils.errors import ConfigError

VOCAB, WIDTH = 70, 8


def _head(bias=False, kind=ParallelLMHead):
    head = kind(VOCAB, WIDTH, bias=bias) if bias else kind(VOCAB, WIDTH)
    table = torch.randn(VOCAB, WIDTH)
    head.weight.weight_loader(head.weight, table)
    if bias:
        head.bias.weight_loader(head.bias, torch.randn(VOCAB))
    return head, table


def test_embedding_loads_pads_and_looks_up():
    embed, table = _head(kind=VocabParallelEmbedding)
    assert embed.weight.shape == (pad_vocab_size(VOCAB), WIDTH) == (128, WIDTH)
    assert not embed.weight[VOCAB:].any()
    assert not unfilled_shards(embed.weight)
    ids = torch.tensor([0, 69, 3])
    assert torch.equal(embed(ids), table[ids])
    assert embed(ids[:0]).shape == (0, WIDTH)


def test_embedding_refuses_another_vocabulary():
    embed = VocabParallelEmbedding(VOCAB, WIDTH, prefix="model.embed_tokens")
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight: .* 70 tokens.*\(71, 8\)"):
        embed.weight.weight_loader(embed.weight, torch.zeros(71, WIDTH))


@pytest.mark.parametrize("added", [0, 5])
def test_ranks_add_up_to_the_whole_table(monkeypatch, added):
    table = torch.randn(VOCAB, WIDTH)
    ids = torch.arange(VOCAB + added)
    total = torch.zeros(len(ids), WIDTH)
    extra = torch.randn(added, WIDTH)
    monkeypatch.setattr(vocab_parallel_embedding, "tensor_model_parallel_all_reduce", lambda x: x)
    for rank in range(2):
        monkeypatch.setattr(vocab_parallel_embedding, "_ranks", lambda *_, rank=rank: (rank, 2))
        embed = VocabParallelEmbedding(VOCAB + added, WIDTH, org_num_embeddings=VOCAB)
        embed.weight.weight_loader(embed.weight, table)
        shard = embed.shard_indices
        rows = extra[shard.added_vocab_start_index - VOCAB : shard.added_vocab_end_index - VOCAB]
        embed.weight.data[shard.num_org_rows_padded :][: len(rows)] = rows
        total += embed(ids)
    assert torch.equal(total, torch.cat([table, extra]))


def test_added_tokens_sit_behind_the_padding_on_one_rank():
    embed = VocabParallelEmbedding(VOCAB + 2, WIDTH, org_num_embeddings=VOCAB)
    embed.weight.weight_loader(embed.weight, torch.randn(VOCAB, WIDTH))
    embed.weight.data[128:130] = 7.0
    assert embed(torch.tensor([VOCAB, VOCAB + 1])).eq(7.0).all()
    assert not embed(torch.tensor([VOCAB - 1])).eq(7.0).any()


def test_head_ties_and_has_no_forward():
    embed, _ = _head(kind=VocabParallelEmbedding)
    head = ParallelLMHead(VOCAB, WIDTH).tie_weights(embed)
    assert head.weight is embed.weight
    with pytest.raises(RuntimeError, match="LogitsProcessor"):
        head(torch.tensor([0]))


@pytest.mark.parametrize(("size", "num_ranks"), [(VOCAB, 1), (128, 2)])
def test_a_head_whose_rows_are_not_in_the_order_of_tokens_is_refused(monkeypatch, size, num_ranks):
    monkeypatch.setattr(vocab_parallel_embedding, "_ranks", lambda *_: (0, num_ranks))
    with pytest.raises(
        ConfigError, match=f"lm_head: num_embeddings={size + 2}.*{size} on {num_ranks}"
    ):
        ParallelLMHead(size + 2, WIDTH, org_num_embeddings=size, prefix="lm_head")
    assert ParallelLMHead(size, WIDTH, org_num_embeddings=size).num_embeddings == size


def test_a_head_with_added_tokens_on_one_rank_has_them_in_order():
    head, hidden = ParallelLMHead(130, WIDTH, org_num_embeddings=128), torch.randn(3, WIDTH)
    head.weight.data.copy_(torch.randn_like(head.weight))
    found = LogitsProcessor(SimpleNamespace(vocab_size=130)).compute_logits(hidden, head)
    torch.testing.assert_close(found, hidden @ head.weight[:130].T)


def _config(**kwargs):
    return SimpleNamespace(vocab_size=VOCAB, **kwargs)


def _extend(lens, **kwargs):
    return ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=len(lens),
        extend_seq_lens=torch.tensor(lens, dtype=torch.int32),
        extend_seq_lens_cpu=lens,
        **kwargs,
    )


@pytest.mark.parametrize("bias", [False, True])
def test_decode_uses_all_rows_and_the_bias(bias):
    head, table = _head(bias)
    hidden = torch.randn(5, WIDTH)
    out = LogitsProcessor(_config())(None, hidden, head, LogitsMetadata(ForwardMode.DECODE))
    expected = F.linear(hidden, table, head.bias[:VOCAB] if bias else None)
    torch.testing.assert_close(out.next_token_logits, expected)
    assert out.hidden_states is None and out.input_token_logprobs is None


def test_extend_takes_last_rows_and_converts_to_float32():
    head, table = _head()
    head.to(torch.bfloat16)
    hidden = torch.randn(6, WIDTH)
    out = LogitsProcessor(_config())(None, hidden, head, _extend([4, 2]))
    assert out.next_token_logits.dtype == torch.float32
    expected = (hidden[[3, 5]].bfloat16() @ table.bfloat16().T).float()
    torch.testing.assert_close(out.next_token_logits, expected)


def test_scale_then_soft_cap():
    head, table = _head()
    processor = LogitsProcessor(_config(final_logit_softcapping=3.0), logit_scale=0.5)
    hidden = torch.randn(2, WIDTH)
    out = processor(None, hidden, head, LogitsMetadata(ForwardMode.DECODE))
    expected = 3.0 * torch.tanh(hidden @ table.T * 0.5 / 3.0)
    torch.testing.assert_close(out.next_token_logits, expected)


def test_soft_cap_of_none_or_zero_is_off():
    for cap in (None, 0.0, -1.0):
        assert LogitsProcessor(_config(final_logit_softcapping=cap)).final_logit_softcapping is None


@pytest.mark.parametrize("block", [2048, 2])
def test_input_logprobs(monkeypatch, block):
    monkeypatch.setattr(logits_processor, "_MAX_BLOCK_ROWS", block)
    head, table = _head()
    hidden = torch.randn(9, WIDTH)
    lens, starts = [4, 2, 3], [1, 2, 0]
    rows = [1, 2, 3, 6, 7, 8]
    targets = torch.randint(0, VOCAB, (len(rows),))
    batch = _extend(
        lens,
        return_logprob=True,
        extend_logprob_start_lens_cpu=starts,
        extend_input_logprob_token_ids_gpu=targets,
        top_logprobs_nums=[2, 5, 0],
        token_ids_logprobs=[None, [1], [3, 69]],
    )
    out = LogitsProcessor(_config())(None, hidden, head, batch)
    reference = torch.log_softmax(hidden @ table.T, dim=-1)
    torch.testing.assert_close(out.next_token_logits, (hidden @ table.T)[[3, 5, 8]])
    torch.testing.assert_close(out.input_token_logprobs, reference[rows, targets])
    top = reference.topk(2, dim=-1)
    first, last = (rows := out.prompt_logprobs.download(CpuPlatform())()).values()
    assert list(rows) == [0, 2], "the second request wants no row"
    assert first.chosen + last.chosen == out.input_token_logprobs.tolist()
    assert [ids for _, ids in first.top] == top.indices[[1, 2, 3]].tolist()
    torch.testing.assert_close(
        torch.tensor([values for values, _ in first.top]),
        top.values[[1, 2, 3]],
        rtol=1e-5,
        atol=1e-5,
    )
    assert first.given == [] and last.top == []
    torch.testing.assert_close(torch.tensor(last.given), reference[6:9][:, [3, 69]])


def test_logprobs_of_outputs_only_compute_no_input_rows():
    head, _ = _head()
    batch = _extend(
        [4, 2],
        return_logprob=True,
        extend_logprob_start_lens_cpu=[4, 2],
        extend_input_logprob_token_ids_gpu=torch.empty(0, dtype=torch.int64),
        top_logprobs_nums=[3, 0],
    )
    out = LogitsProcessor(_config())(None, torch.randn(6, WIDTH), head, batch)
    assert out.input_token_logprobs.shape == (0,)
    assert out.prompt_logprobs.download(CpuPlatform())() == {}


def test_hidden_state_capture():
    head, _ = _head()
    hidden, aux = torch.randn(6, WIDTH), [torch.randn(6, 2), torch.randn(6, 3)]
    processor = LogitsProcessor(_config(), return_full_logits=True)
    full = _extend([4, 2], capture_hidden_mode=CaptureHiddenMode.FULL)
    last = _extend([4, 2], capture_hidden_mode=CaptureHiddenMode.LAST)
    out = processor(None, hidden, head, full)
    assert torch.equal(out.hidden_states, hidden)
    assert out.full_logits.shape == (6, VOCAB)
    assert torch.equal(processor(None, hidden, head, last).hidden_states, hidden[[3, 5]])
    both = processor(None, hidden, head, last, aux).hidden_states
    assert torch.equal(both, torch.cat(aux, -1)[[3, 5]])
    before = torch.randn(6, 4)
    out = processor(None, hidden, head, LogitsMetadata.from_forward_batch(full), aux, before)
    assert torch.equal(out.hidden_states, before)


def test_other_kinds_of_heads():
    processor, hidden = LogitsProcessor(_config()), torch.randn(2, WIDTH)
    metadata = LogitsMetadata(ForwardMode.DECODE)
    linear = torch.nn.Linear(WIDTH, VOCAB)
    torch.testing.assert_close(
        processor(None, hidden, linear, metadata).next_token_logits, linear(hidden)
    )

    class Lora(torch.nn.Module):
        set_lora = apply_lora = True

        def forward(self, x):
            return linear(x) + 1

    torch.testing.assert_close(
        processor(None, hidden, Lora(), metadata).next_token_logits, linear(hidden) + 1
    )
    packed = torch.nn.Module()
    packed.quant_method = SimpleNamespace(apply=lambda layer, x, bias: linear(x))
    torch.testing.assert_close(
        processor(None, hidden, packed, metadata).next_token_logits, linear(hidden)
    )
