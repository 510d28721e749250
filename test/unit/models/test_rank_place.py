"""Which rank runs where, and what makes no sense."""

from __future__ import annotations

import msgspec
import pytest
import torch
from models.tiny import build_config

from sglang.srt.arg_groups.ports import PortArgs
from sglang.srt.arg_groups.rank_place import RankPlace, local_tp_ranks
from sglang.srt.arg_groups.resolve import Facts, resolve
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import divide, rendezvous
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.model_executor.parallel_worker import without_sampling
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError


@pytest.fixture
def ports():
    made = PortArgs.init_new(ServerArgs())
    yield made
    made.cleanup()


def test_one_machine_meets_in_a_private_file(ports):
    args = ServerArgs(tp_size=4, base_gpu_id=2, dist_timeout=7)
    assert local_tp_ranks(args) == range(4)
    place = RankPlace.of(args, ports, 3)
    assert (place.tp_rank, place.local_rank, place.ranks_per_node) == (3, 3, 4)
    assert place.init_method == f"file://{ports.socket_dir}/ranks"
    assert place.host == "127.0.0.1" and place.is_on_loopback and place.timeout == 7


def test_port_of_one_machine_is_on_loopback(ports):
    place = RankPlace.of(ServerArgs(tp_size=2, nccl_port=4321), ports, 1)
    assert place.init_method == "tcp://127.0.0.1:4321" and place.is_on_loopback


def test_the_environment_may_say_where_ranks_meet(ports, monkeypatch):
    monkeypatch.setenv("SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE", "tcp://10.0.0.9:77")
    args = ServerArgs(tp_size=2, nccl_port=4321)
    assert RankPlace.of(args, ports, 1).init_method == "tcp://10.0.0.9:77"


@pytest.mark.parametrize(
    ("address", "host", "is_on_loopback"),
    [("10.0.0.1:5000", "10.0.0.1", False), ("[::1]:5000", "::1", True), ("a:1", "a", False)],
)
def test_machines_share_the_ranks(ports, address, host, is_on_loopback):
    args = ServerArgs(tp_size=4, nnodes=2, node_rank=1, dist_init_addr=address)
    assert local_tp_ranks(args) == range(2, 4)
    place = RankPlace.of(args, ports, 3)
    assert (place.local_rank, place.ranks_per_node) == (1, 2)
    assert place.init_method == f"tcp://{address}"
    assert (place.host, place.is_on_loopback) == (host, is_on_loopback)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tp_size": 3, "nnodes": 2, "dist_init_addr": "h:1"}, "--nnodes 2 must divide --tp 3"),
        ({"nnodes": 2, "dist_init_addr": "h:1"}, "--nnodes 2 must divide --tp 1"),
        ({"tp_size": 2, "nnodes": 2}, "--nnodes 2 needs --dist-init-addr"),
        ({"tp_size": 2, "node_rank": 1}, "--node-rank 1 must be below --nnodes 1"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(ConfigError, match=message):
        ServerArgs(**flags)


def test_ranks_of_a_machine_share_its_cores():
    facts = Facts(device="cpu", device_memory_mib=None, num_cpus=8, random_seed=0)
    assert resolve(ServerArgs(tp_size=2), facts).num_cpus == 4
    assert resolve(ServerArgs(tp_size=16), facts).num_cpus == 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "fitting", "message"),
    [
        (4, 2, (1, 2, 4), "tp_size=3 does not divide the model's 4 attention heads"),
        (12, 2, (1, 2, 4), "tp_size=3 neither divides the model's 2 KV heads"),
    ],
)
def test_heads_are_dealt_out_evenly(tmp_path, heads, kv_heads, fitting, message):
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 96}
    build_config("llama", **sizes).save_pretrained(tmp_path)
    model_config = ModelConfig(str(tmp_path))
    for tp_size in fitting:
        model_config.check_tp_size(tp_size)
    with pytest.raises(ConfigError, match=message):
        model_config.check_tp_size(3)


@pytest.mark.parametrize(
    ("name", "changes", "reason", "fitting"),
    [
        (
            "llama",
            {"intermediate_size": 160, "vocab_size": 576},
            "intermediate_size 160",
            "1, 2, 4",
        ),
        (
            "llama",
            {"intermediate_size": 192, "vocab_size": 500},
            "vocabulary of 500, padded to 512",
            "1, 2, 4",
        ),
        ("llama", {"intermediate_size": 192, "vocab_size": 576}, None, ""),
        ("qwen3-moe", {"intermediate_size": 160, "vocab_size": 576}, None, ""),
    ],
)
def test_sizes_that_three_ranks_cannot_share_are_named(tmp_path, name, changes, reason, fitting):
    """Before any process starts. The width of layers that a model with experts need not have is no reason."""
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 96}
    build_config(name, **heads, **changes).save_pretrained(tmp_path)
    model_config = ModelConfig(str(tmp_path))
    if reason is None:
        model_config.check_tp_size(3)
        return
    with pytest.raises(ConfigError, match=rf"tp_size=3 .*{reason}; .*: {fitting}$"):
        model_config.check_tp_size(3)


def test_a_division_that_leaves_a_rest_is_an_error_of_the_configuration():
    assert divide(12, 3) == 4
    with pytest.raises(ConfigError, match="13 is not divisible by 3"):
        divide(13, 3)


def test_plans_travel_without_what_only_the_sampler_reads():
    setup = RowSetup(row=1, sampling=SamplingSpec(), prompt_ids=[5] * 1000, output_ids=[])
    work = RowWork(
        row=1,
        start=4,
        num_tokens=2,
        token_ids=[8, 9],
        prefix_slots=bytes(16),
        new_slots=bytes(8),
        sample=True,
        return_logprob=True,
        input_logprob_start=1,
    )
    plan = StepPlan(step_id=3, mode="extend", works=[work], setups=[setup])
    frame = msgspec.msgpack.encode(without_sampling(plan))
    assert len(frame) < 500
    received = msgspec.msgpack.decode(frame, type=StepPlan)
    assert received.works == [work] and received.mode == "extend"
    assert received.setups == []
    assert plan.setups == [setup], "rank 0 still needs it"


def test_store_listens_on_its_address_only():
    with rendezvous.bind("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
    store = rendezvous.open_tcp_store(f"tcp://127.0.0.1:{port}", 1, 0, None)
    store.set("key", "value")
    assert store.get("key") == b"value"
    with rendezvous.bind("127.0.0.2", port):
        """The port is free on other addresses."""


def test_taken_port_names_itself():
    with rendezvous.bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            rendezvous.bind("127.0.0.1", port)


def test_loopback_is_a_default_that_the_environment_overrides(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(rendezvous.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth7")])
    environment = dict(rendezvous.os.environ)
    monkeypatch.setattr(rendezvous.os, "environ", environment)
    rendezvous.stay_on_loopback()
    assert environment["GLOO_SOCKET_IFNAME"] == "eth7"
    assert environment["NCCL_SOCKET_IFNAME"] == "lo"


def test_one_rank_needs_no_group():
    from sglang.srt.distributed import get_tp_group

    group = get_tp_group()
    tensor = torch.tensor([1, 2])
    assert group.min_of_hosts(7) == 7 and group.broadcast_host(tensor) is tensor
