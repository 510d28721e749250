"""Server arguments: parsing, checks, the config file, resolution of "auto", and the commands in front of them."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sglang
from sglang.cli import main as cli
from sglang.launch_server import main as launch_main
from sglang.srt import server_args as module
from sglang.srt.arg_groups import resolve as rules
from sglang.srt.managers import scheduler_builder
from sglang.srt.managers.scheduler_builder import load_runner, with_media_reserve
from sglang.srt.server_args import (
    DEMO_MODEL_PATH,
    Facts,
    PortArgs,
    ServerArgs,
    collect_facts,
    get_global_server_args,
    prepare_server_args,
    resolve,
    set_global_server_args_for_scheduler,
)
from sglang.srt.utils.errors import ConfigError

CPU = Facts(device="cpu", device_memory_mib=None, num_cpus=2, random_seed=42)


def gpu(memory_gib: float) -> Facts:
    return Facts("cuda", int(memory_gib * 1024), num_cpus=16, random_seed=42)


# Parsing


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--model-path", "m"], "model_path", "m"),
        (["--model=m"], "model_path", "m"),
        (["--tp", "1"], "tp_size", 1),
        (["--tp-size=1"], "tp_size", 1),
        (["--tensor-parallel-size=1"], "tp_size", 1),
        (["--dp", "1"], "dp_size", 1),
        (["--ep", "1"], "ep_size", 1),
        (["--pp", "1"], "pp_size", 1),
        (["--context", "77"], "context_length", 77),
        (["--mem-frac", "0.5"], "mem_fraction_static", 0.5),
        (["--chunked-prefill-size", "-1"], "chunked_prefill_size", -1),
        (["--trust"], "trust_remote_code", True),
        (["--log-requests-target", "stdout", "a/b"], "log_requests_target", ["stdout", "a/b"]),
        (["--bucket-inter", "0.1", "1"], "bucket_inter_token_latency", [0.1, 1.0]),
        (["--mm-process-config", '{"image": {"a": 1}}'], "mm_process_config", {"image": {"a": 1}}),
        (["--nccl-init-addr", "h:1"], "dist_init_addr", "h:1"),
    ],
)
def test_spellings(words: list[str], name: str, value: object) -> None:
    assert getattr(prepare_server_args(words), name) == value


def test_walkthrough_command_for_cpu_parses() -> None:
    words = "--model m --trust-remote-code --device cpu --disable-overlap-schedule --tp 1 --port=3"
    args = prepare_server_args(words.split())
    assert (args.model_path, args.device, args.disable_overlap_schedule) == ("m", "cpu", True)
    assert args.url() == "http://127.0.0.1:3"


def test_defaults_of_the_contract() -> None:
    args = ServerArgs()
    wanted = {
        "host": "127.0.0.1",
        "port": 30000,
        "load_format": "auto",
        "model_impl": "auto",
        "weight_version": "default",
        "sampling_defaults": "model",
        "dtype": "auto",
        "kv_cache_dtype": "auto",
        "quantization": None,
        "max_prefill_tokens": 16384,
        "schedule_policy": "fcfs",
        "schedule_conservativeness": 1.0,
        "page_size": 1,
        "radix_eviction_policy": "lru",
        "num_continuous_decode_steps": 1,
        "stream_interval": 1,
        "watchdog_timeout": 300,
        "log_level": "info",
        "log_requests_level": 2,
        "decode_log_interval": 40,
        "grammar_backend": "xgrammar",
        "fp4_gemm_runner_backend": "flashinfer_cutlass",
        "max_loras_per_batch": 8,
        "disaggregation_mode": "null",
        "disaggregation_bootstrap_port": 8998,
        "speculative_ngram_capacity": 10_000_000,
        "mm_process_config": {},
        "enable_multimodal": None,
    }
    assert {name: getattr(args, name) for name in wanted} == wanted
    assert prepare_server_args([]) == args


def test_mutable_defaults_are_not_shared() -> None:
    first, second = ServerArgs(), ServerArgs()
    first.mm_process_config["image"] = {}
    first.encoder_urls.append("x")
    assert (second.mm_process_config, second.encoder_urls) == ({}, [])


def test_without_a_model_the_demo_model_is_served() -> None:
    args = ServerArgs()
    assert args.uses_demo_model
    assert args.model_path == DEMO_MODEL_PATH
    assert Path(DEMO_MODEL_PATH).parent == Path(sglang.__file__).parent
    assert "demo model" in resolve(args, CPU).decisions[0]


@pytest.mark.parametrize(("path", "skips"), [("none", True), ("Dummy", True), ("nonesuch", False)])
def test_model_path_none(path: str, skips: bool) -> None:
    assert ServerArgs(model_path=path).skips_model is skips


def test_subclass_may_add_a_flag() -> None:
    from sglang.srt.arg_groups.fields import add_flags, flag, flag_specs

    @dataclasses.dataclass(kw_only=True)
    class Mine(ServerArgs):
        """Mine."""

        extra: int = flag(3, "An extra number.", minimum=1)

    assert flag_specs(Mine)["extra"].default == 3
    assert "extra" not in flag_specs(ServerArgs)
    with pytest.raises(ConfigError, match="--extra 0 must be at least 1"):
        Mine(extra=0)
    import argparse

    parser = argparse.ArgumentParser()
    add_flags(parser, Mine)
    assert Mine.from_cli_args(parser.parse_args(["--extra", "5"])).extra == 5


# Checks


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tp_size": "2"}, "--tensor-parallel-size '2' must be of type int"),
        ({"tp_size": True}, "must be of type int"),
        ({"dp_size": 2}, "--data-parallel-size 2 is not implemented"),
        ({"tp_size": 0}, "must be at least 1"),
        ({"port": 65536}, "--port 65536 must be at most 65535"),
        ({"page_size": None}, "--page-size None must be of type int"),
        ({"mem_fraction_static": 1.5}, "must be at most 1.0"),
        ({"mem_fraction_static": float("nan")}, "must be a finite number"),
        ({"load_format": "zip"}, "--load-format 'zip' is unknown; allowed: auto, pt,"),
        ({"load_format": "gguf"}, "--load-format gguf is not implemented; use one of: auto, pt"),
        ({"json_model_override_args": "{"}, "is not JSON"),
        ({"json_model_override_args": "[]"}, "must be a JSON object"),
        ({"log_requests_target": "stdout"}, "must be a list"),
        ({"log_level": "loud"}, "--log-level 'loud' is unknown"),
        ({"served_model_name": "a:b"}, "must not contain ':'"),
        ({"api_key": ""}, "--api-key is empty"),
        ({"admin_api_key": ""}, "--admin-api-key is empty"),
        ({"chunked_prefill_size": 0}, "use -1"),
        ({"chunked_prefill_size": -2}, "must be at least -1"),
        ({"disable_radix_cache": True, "enable_hierarchical_cache": True}, "needs the radix cache"),
        (
            {"enable_tokenizer_batch_encode": True, "enable_dynamic_batch_tokenizer": True},
            "exclude each other",
        ),
        ({"enable_lora": True, "speculative_algorithm": "EAGLE"}, "LoRA does not work with"),
        ({"lora_paths": ["a"], "speculative_algorithm": "NEXTN"}, "LoRA does not work with"),
        (
            {"limit_mm_data_per_request": {"smell": 1}},
            "names 'smell'; allowed: image, video, audio",
        ),
        ({"disaggregation_mode": "both"}, "is unknown; allowed: null, prefill, decode"),
        ({"disaggregation_mode": "prefill"}, "--disaggregation-mode prefill is not implemented"),
        ({"node_rank": 1}, "--node-rank 1 must be below --nnodes 1"),
        ({"dist_init_addr": "host"}, "must have the form host:port"),
        (
            {"enable_priority_scheduling": True, "schedule_policy": "lpm"},
            "needs --schedule-policy fcfs or lof",
        ),
    ],
)
def test_bad_values_are_refused_with_name_and_remedy(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerArgs(**values)
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_chunk_must_be_whole_pages() -> None:
    for kind in (ConfigError, AssertionError):
        with pytest.raises(kind, match="--chunked-prefill-size 100 must be a multiple of"):
            ServerArgs(chunked_prefill_size=100, page_size=16)
    assert ServerArgs(chunked_prefill_size=-1, page_size=16).chunked_prefill_size == -1


def test_harmless_values_pass() -> None:
    ServerArgs(
        enable_multimodal=False,
        limit_mm_data_per_request={"image": 2},
        mm_max_concurrent_calls=4,
        chat_template="a/b.jinja",
        disable_cuda_graph=True,
        cuda_graph_bs=[1, 2],
        disable_shared_experts_fusion=True,
        watchdog_timeout=5,  # a whole number where a float is declared
    )


# Config file


def write(tmp_path: Path, text: str, name: str = "c.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_config_file_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model-path: m\nport: 1\ntrust_remote_code: true\nskip-tokenizer-init: false\n"
        "chunked_prefill_size: -1\ntp_size: 1\nlog-requests-target: [stdout, x]\nrevision:\n"
        'json-model-override-args: {"a": 1}\n',
    )
    for words in (["--config", path, "--port", "2"], ["--port=2", f"--config={path}"]):
        args = prepare_server_args(words)
        assert (args.model_path, args.port, args.trust_remote_code) == ("m", 2, True)
        assert (args.skip_tokenizer_init, args.chunked_prefill_size) == (False, -1)
        assert (args.log_requests_target, args.revision) == (["stdout", "x"], None)
        assert json.loads(args.json_model_override_args) == {"a": 1}
    assert prepare_server_args(["--conf", path]).port == 1


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("prot: 1", "c.yaml", "'prot' is no flag; did you mean port"),
        ("config: x.yaml", "c.yaml", "'config' is no flag"),
        ("- a", "c.yml", "must hold a mapping"),
        ("", "c.yaml", "must hold a mapping"),
        ("a: [", "c.yaml", "is not YAML"),
        ("port: 1", "c.json", "must end in .yaml or .yml"),
        ("trust-remote-code: 'yes please'", "c.yaml", "must be true or false"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, name: str, words: str) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(ConfigError) as caught:
        prepare_server_args(["--config", path])
    assert words in str(caught.value)


def test_config_file_once_and_readable(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 1")
    with pytest.raises(ConfigError, match="may be given once"):
        prepare_server_args(["--config", path, "--config", path])
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare_server_args(["--config", path + ".yaml"])
    with pytest.raises(ConfigError, match="needs the path"):
        prepare_server_args(["--config"])


# Resolution


def test_resolution_on_cpu() -> None:
    args = ServerArgs(model_path="m")
    resolved = resolve(args, CPU)
    assert resolved == resolve(args, CPU), "resolution is pure"
    assert (resolved.device, resolved.overlap_depth, resolved.disable_cuda_graph) == (
        "cpu",
        0,
        True,
    )
    assert (resolved.chunked_prefill_size, resolved.cuda_graph_max_bs) == (4096, 160)
    assert resolved.mem_fraction_static == 0.88
    assert (resolved.tokenizer_path, resolved.served_model_name) == ("m", "m")
    assert resolved.random_seed == 42
    assert (resolved.attention_backend, resolved.sampling_backend) == ("torch_native", "pytorch")
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.device = "cuda"  # type: ignore[misc]


def test_given_values_are_kept_and_only_open_ones_are_logged() -> None:
    args = ServerArgs(
        model_path="m",
        tokenizer_path="t",
        served_model_name="s",
        random_seed=7,
        device="cpu",
        chunked_prefill_size=512,
        mem_fraction_static=0.5,
        cuda_graph_max_bs=9,
        attention_backend="torch_native",
        sampling_backend="pytorch",
        disable_cuda_graph=True,
        disable_overlap_schedule=True,
    )
    resolved = resolve(args, CPU)
    assert resolved.decisions == ()
    assert (resolved.tokenizer_path, resolved.served_model_name) == ("t", "s")
    assert (resolved.random_seed, resolved.chunked_prefill_size) == (7, 512)
    assert (resolved.mem_fraction_static, resolved.cuda_graph_bs) == (0.5, (1, 2, 4, 8))


def test_every_decision_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    resolved = resolve(ServerArgs(), CPU)
    with caplog.at_level("INFO"):
        resolved.log_decisions()
    assert [record.getMessage() for record in caplog.records] == list(resolved.decisions)
    assert "chunked_prefill_size=4096 (device memory unknown)" in resolved.decisions


def test_apply_to_fills_the_open_values() -> None:
    args = ServerArgs(model_path="m", port=5)
    filled = resolve(args, gpu(24)).apply_to(args)
    assert (filled.port, filled.device, filled.chunked_prefill_size) == (5, "cuda", 2048)
    assert filled.served_model_name == "m"
    assert filled.cuda_graph_bs == [1, 2, 4, 8, 12, 16, 24]
    assert args.chunked_prefill_size is None


@pytest.mark.parametrize(
    ("memory_gib", "chunk", "few", "many"),
    [
        (16, 2048, 8, 8),
        (20, 2048, 24, 80),
        (24, 2048, 24, 80),
        (40, 4096, 32, 160),
        (80, 8192, 256, 512),
        (141, 8192, 256, 512),
        (180, 16384, 512, 512),
    ],
)
def test_table_by_gpu_memory(memory_gib: int, chunk: int, few: int, many: int) -> None:
    memory = memory_gib * 1024
    assert rules.chunk_for_memory(memory, 1) == chunk
    assert rules.graph_max_bs_for_memory(memory, 1) == few
    assert rules.graph_max_bs_for_memory(memory, 4) == many


def test_chunk_is_rounded_to_whole_pages() -> None:
    assert rules.chunk_for_memory(None, 16) == 4096
    assert rules.chunk_for_memory(None, 100) == 4000
    assert rules.chunk_for_memory(None, 5000) == 5000
    assert resolve(ServerArgs(page_size=100), CPU).chunked_prefill_size == 4000


def test_memory_fraction_rule() -> None:
    # 24 GiB: 512 + 1.5 * 2048 + 2 * 24 + 128 = 3760 MiB kept back
    assert rules.memory_fraction(24 * 1024, 2048, 24, 1) == round(1 - 3760 / (24 * 1024), 3)
    # Above 60 GiB at least 10 GiB are kept back.
    assert rules.memory_fraction(80 * 1024, 2048, 8, 1) == 0.875
    assert rules.memory_fraction(80 * 1024, -1, 8, 1) == 0.875
    assert rules.memory_fraction(None, 4096, 160, 1) == 0.88
    with pytest.raises(ConfigError, match="is too small for"):
        rules.memory_fraction(2048, 2048, 8, 1)
    assert resolve(ServerArgs(mem_fraction_static=0.5), gpu(2)).mem_fraction_static == 0.5


@pytest.mark.parametrize(
    ("memory_gib", "flags", "less_mib"),
    [
        (24, {}, 1024),
        (80, {}, 4096),
        (80, {"chunked_prefill_size": -1}, 1024),
        (180, {}, 8192),
        (80, {"mem_fraction_static": 0.9}, 0),
    ],
)
def test_a_model_that_takes_media_leaves_memory_for_its_tower(memory_gib, flags, less_mib) -> None:
    args, facts = ServerArgs(**flags), gpu(memory_gib)
    text = resolve(args, facts)
    media = SimpleNamespace(is_multimodal=True)
    known, resolved = with_media_reserve(args, facts, text, media)
    less = (text.mem_fraction_static - resolved.mem_fraction_static) * memory_gib * 1024
    assert less == pytest.approx(less_mib, abs=0.001 * memory_gib * 1024)
    # An attention backend that has to give way is resolved from the same facts.
    again = resolve(args, known.without_attention("fa3", "why not"))
    assert again.mem_fraction_static == resolved.mem_fraction_static
    assert any("takes media" in line for line in resolved.decisions) == (less_mib > 0)


def test_a_runner_is_built_with_the_media_s_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(is_multimodal=True, is_encoder_decoder=False, hf_config=None)
    replaced = {
        "collect_facts": lambda args: gpu(80),
        "build_model_config": lambda args, resolved: config,
        "build_runner": lambda *args: None,
        "set_global_server_args_for_scheduler": lambda args: None,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(scheduler_builder, name, function)
    resolved = load_runner(ServerArgs(model_path="m", attention_backend="triton"))[1]
    assert resolved.mem_fraction_static == round(1 - (13440 + 4096) / (80 * 1024), 3)


def test_only_media_on_a_gpu_take_memory_from_the_cache() -> None:
    for facts, is_multimodal in ((CPU, True), (gpu(80), False)):
        text = resolve(ServerArgs(), facts)
        config = SimpleNamespace(is_multimodal=is_multimodal)
        assert with_media_reserve(ServerArgs(), facts, text, config) == (facts, text)


def test_graph_batch_sizes() -> None:
    assert rules.graph_batch_sizes(8) == [1, 2, 4, 8]
    sizes = rules.graph_batch_sizes(600)
    assert sizes[:7] == [1, 2, 4, 8, 12, 16, 24]
    assert [s for s in sizes if 112 <= s <= 600] == [
        112, 120, 128, 144, 160, 176, 192, 208, 224, 240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400, 416, 432, 448, 464, 480, 496,
        512, 544, 576,
    ]  # fmt: skip


def test_graph_sizes_that_are_given_set_the_maximum() -> None:
    resolved = resolve(ServerArgs(cuda_graph_bs=[4, 1, 4, 30]), gpu(80))
    assert (resolved.cuda_graph_bs, resolved.cuda_graph_max_bs) == ((1, 4, 30), 30)


def test_resolution_on_gpu() -> None:
    resolved = resolve(ServerArgs(), gpu(80))
    assert (resolved.device, resolved.overlap_depth) == ("cuda", 1)
    assert resolve(ServerArgs(disable_overlap_schedule=True), gpu(80)).overlap_depth == 0


def test_intel_amx_falls_back_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    resolved = resolve(ServerArgs(attention_backend="intel_amx"), CPU)
    assert resolved.attention_backend == resolved.decode_attention_backend == "torch_native"
    assert "intel_amx is not implemented; torch_native takes its place" in caplog.text


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, "fa3"),
        ({"dtype": "float32"}, "triton"),
        ({"dtype": "float"}, "triton"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "triton"),
        (
            {"dtype": "float32", "attention_backend": "fa3"},
            "fa3",
        ),  # who asks is told by the backend
    ],
)
def test_what_a_package_has_no_kernels_for_is_not_given_to_it(
    flags: dict, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sglang.srt.arg_groups.resolve.installed_attention_packages",
        lambda: frozenset({"sgl_kernel", "triton"}),
    )
    hopper = dataclasses.replace(gpu(141), compute_capability=(9, 0))
    assert resolve(ServerArgs(**flags), hopper).attention_backend == expected


def test_facts_of_a_cpu() -> None:
    facts = collect_facts(ServerArgs(device="cpu"))
    assert (facts.device, facts.device_memory_mib) == ("cpu", None)
    assert facts.num_cpus >= 1
    assert 0 <= facts.random_seed < 2**30


# Addresses


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:30000"),
        ("0.0.0.0", "http://127.0.0.1:30000"),
        ("::", "http://[::1]:30000"),
        ("fe80::1", "http://[fe80::1]:30000"),
        ("example.org", "http://example.org:30000"),
    ],
)
def test_url(host: str, url: str) -> None:
    assert ServerArgs(host=host).url() == url


def test_port_args_are_private_and_removed() -> None:
    ports = PortArgs.init_new(ServerArgs(nccl_port=4321))
    try:
        assert ports.nccl_port == 4321
        assert stat.S_IMODE(os.stat(ports.socket_dir).st_mode) == 0o700
        names = [v for k, v in dataclasses.asdict(ports).items() if k.endswith("_ipc_name")]
        assert len(set(names)) == 5
        assert all(name.startswith(f"ipc://{ports.socket_dir}/") for name in names)
        assert all(len(name.removeprefix("ipc://")) < 108 for name in names)
    finally:
        ports.cleanup()
    assert not Path(ports.socket_dir).exists()
    ports.cleanup()


def test_socket_paths_stay_short_in_a_deep_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    ports = PortArgs.init_new(ServerArgs())
    try:
        assert len(ports.scheduler_input_ipc_name.removeprefix("ipc://")) < 108
        assert list(deep.iterdir()) == []
        assert 0 < ports.nccl_port < 65536
    finally:
        ports.cleanup()


# Secrets and globals


def test_keys_are_never_shown() -> None:
    args = ServerArgs(api_key="hunter2", admin_api_key="hunter3")
    assert "hunter" not in repr(args)
    public = args.public_dict()
    assert (public["api_key"], public["admin_api_key"]) == ("***", "***")
    assert "hunter" not in json.dumps(public)
    assert set(public) == {f.name for f in dataclasses.fields(args)}
    assert ServerArgs().public_dict()["api_key"] is None


def test_global_server_args(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_global_server_args", None)
    with pytest.raises(ValueError, match="not set in this process"):
        get_global_server_args()
    args = ServerArgs()
    set_global_server_args_for_scheduler(args)
    assert get_global_server_args() is args
    get_global_server_args().disable_shared_experts_fusion = True  # model files write this one


# Commands


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import sglang",
        "import sglang.srt.sampling.sampling_params, sglang.srt.environ, sglang.srt.utils.auth",
        "from sglang.cli.main import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass",
        "import sglang.srt.server_args as s\n"
        "a = s.prepare_server_args(['--device', 'cpu'])\ns.resolve(a, s.collect_facts(a))",
    ],
)
def test_the_command_line_does_not_import_torch(code: str) -> None:
    heavy = "{'torch', 'transformers', 'fastapi', 'numpy'}"
    output = run_python(f"import sys\n{code}\nprint('heavy:', sorted({heavy} & set(sys.modules)))")
    assert output.endswith("heavy: []\n")


def test_lazy_names_of_the_package() -> None:
    assert sglang.ServerArgs is ServerArgs
    assert {"Engine", "ServerArgs", "__version__"} <= set(dir(sglang))
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        sglang.Engin  # noqa: B018


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_every_command_can_be_loaded() -> None:
    assert all(callable(cli.load(command)) for command in cli.COMMANDS.values())


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sreve"]) == 2
    assert "'sreve' is no command" in capsys.readouterr().err


def test_version_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"sglang version: {sglang.__version__}"
    revision = lines[1].removeprefix("git revision: ")
    assert revision == "unknown" or len(revision) >= 7


def test_generate_command_says_what_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--model-path", "m"]) == 2
    assert "sglang serve" in capsys.readouterr().err


def test_serve_reports_a_wrong_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--tp", "64"]) == 2
    assert "error: tp_size=64 does not divide the model's" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        launch_main(["--load-format", "zip"])
    assert caught.value.code == 2


@pytest.mark.parametrize("flag", ["--no-such-flag", "--load-format=zip", "--port"])
def test_a_flag_that_cannot_be_read_is_one_line(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", flag])
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert flag.partition("=")[0] in printed and "sglang serve --help" in printed


def test_check_env_prints_key_value_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang import check_env

    monkeypatch.setattr(check_env, "_torch_facts", lambda: iter([("PyTorch", "x")]))
    assert check_env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert facts["sglang"] == sglang.__version__
    assert facts["ulimit soft"].lstrip("-").isdigit()
    assert facts["msgspec"][0].isdigit()
