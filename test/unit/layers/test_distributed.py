"""Groups of one rank, and real collectives between two processes."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from sglang.srt import distributed
from sglang.srt.distributed import parallel_state
from sglang.srt.layers import dp_attention
from sglang.srt.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardMode


def test_one_process_needs_no_initialisation():
    x = torch.randn(2, 3)
    assert distributed.get_tensor_model_parallel_world_size() == 1
    assert distributed.get_tensor_model_parallel_rank() == 0
    assert distributed.tensor_model_parallel_all_reduce(x) is x
    assert distributed.tensor_model_parallel_all_gather(x) is x
    group = distributed.get_pp_group()
    assert group.is_first_rank and group.is_last_rank and group.world_size == 1
    assert distributed.get_moe_ep_group().ranks == [0]
    assert dp_attention.get_attention_tp_size() == 1 and not dp_attention.is_dp_attention_enabled()
    assert not distributed.model_parallel_is_initialized()
    distributed.init_distributed_environment()
    distributed.initialize_model_parallel()
    assert distributed.get_tp_group().device_group is None


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="size 2 x pipeline size 1 must equal .* ranks, 1"):
        distributed.initialize_model_parallel(2)


def test_arithmetic():
    assert distributed.divide(8, 2) == 4
    with pytest.raises(ValueError, match="7 is not divisible by 2"):
        distributed.divide(7, 2)
    x = torch.arange(8).view(2, 4)
    parts = distributed.split_tensor_along_last_dim(x, 2)
    assert [part.tolist() for part in parts] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert parts[0].data_ptr() == x.data_ptr()
    assert distributed.split_tensor_along_last_dim(x, 2, True)[1].is_contiguous()


def test_pipeline_split(monkeypatch):
    assert [distributed.get_pp_indices(10, r, 4) for r in range(4)] == [
        (0, 2),
        (2, 4),
        (4, 7),
        (7, 10),
    ]
    monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "1,9")
    assert distributed.get_pp_indices(10, 1, 2) == (1, 10)
    with pytest.raises(ValueError, match="add up to 11"):
        distributed.get_pp_indices(11, 0, 2)


def _small_model(rank, results):
    """A layer of each kind, cut over two ranks, on the same seeded weights."""
    torch.manual_seed(0)
    table, qkv_w, up_w, down_w = (torch.randn(n, m) for n, m in [(70, 8), (16, 8), (6, 8), (8, 6)])
    embed = VocabParallelEmbedding(70, 8)
    qkv = QKVParallelLinear(8, 2, 4, 2, bias=False)
    up = ColumnParallelLinear(8, 6, bias=False, gather_output=True)
    down = RowParallelLinear(6, 8, bias=True, input_is_parallel=False)
    for layer, weight in ((embed, table), (qkv, qkv_w), (up, up_w), (down, down_w)):
        layer.weight.weight_loader(layer.weight, weight)
    down.bias.data.fill_(0.5)
    hidden = embed(torch.tensor([0, 69, 33]))
    wide = up(hidden)[0]
    out = down(wide)[0]
    config = type("Config", (), {"vocab_size": 70})
    logits = LogitsProcessor(config)(None, out, embed, LogitsMetadata(ForwardMode.DECODE))
    expected = (table[[0, 69, 33]] @ up_w.T) @ down_w.T + 0.5
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(logits.next_token_logits, expected @ table.T, rtol=1e-4, atol=1e-4)
    heads = slice(rank * 4, rank * 4 + 4), slice(8 + rank * 2, 10 + rank * 2)
    torch.testing.assert_close(
        qkv(hidden)[0][:, :6], hidden @ torch.cat([qkv_w[h] for h in heads]).T
    )
    results[rank] = "done"


def _tensor_parallel_rank(rank, url, results):
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(2, expert_model_parallel_size=2)
    group = distributed.get_tp_group()
    assert group.rank_in_group == rank and group.ranks == [0, 1]
    assert distributed.get_moe_expert_parallel_rank() == rank
    assert distributed.get_moe_tensor_parallel_world_size() == 1
    mine = torch.full((2, 3), float(rank + 1))
    assert group.all_reduce(mine.clone()).eq(3).all()
    for dim in (0, 1, -1):
        both = torch.cat([torch.ones(2, 3), torch.full((2, 3), 2.0)], dim=dim)
        assert torch.equal(group.all_gather(mine, dim), both)
    assert group.reduce_scatter(mine).tolist() == [[3.0] * 3]
    assert group.broadcast(mine.clone(), src=1).eq(2).all()
    group.barrier()
    _small_model(rank, results)
    distributed.destroy_model_parallel()
    distributed.destroy_distributed_environment()
    assert parallel_state.get_tp_group().world_size == 1


def _pipeline_rank(rank, url, results):
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(1, pipeline_model_parallel_size=2)
    stage = distributed.get_pp_group()
    assert stage.is_first_rank == (rank == 0) and stage.is_last_rank == (rank == 1)
    assert distributed.get_tensor_model_parallel_world_size() == 1
    if rank == 0:
        stage.send(torch.arange(3))
    else:
        assert stage.recv(torch.Size([3]), torch.int64).tolist() == [0, 1, 2]
    results[rank] = "done"
    distributed.destroy_distributed_environment()


@pytest.mark.parametrize("body", [_tensor_parallel_rank, _pipeline_rank])
def test_two_processes(body, tmp_path):
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        url = f"file://{tmp_path}/rendezvous"
        ranks = [context.Process(target=body, args=(r, url, results)) for r in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
        assert dict(results) == {0: "done", 1: "done"}
        assert [process.exitcode for process in ranks] == [0, 0]
