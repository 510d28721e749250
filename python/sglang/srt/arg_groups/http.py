"""Flags of the HTTP server and of what its routes accept."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import IGNORED, REFUSED, flag

TOOL_CALL_PARSERS = (
    "deepseekv3",
    "deepseekv31",
    "deepseekv32",
    "gigachat3",
    "glm",
    "glm45",
    "glm47",
    "gpt-oss",
    "hermes",
    "interns1",
    "kimi_k2",
    "lfm2",
    "llama3",
    "mimo",
    "minimax-m2",
    "mistral",
    "pythonic",
    "qwen",
    "qwen25",
    "qwen3_coder",
    "step3",
    "step3p5",
    "trinity",
)
REASONING_PARSERS = (
    "deepseek-r1",
    "deepseek-v3",
    "glm45",
    "gpt-oss",
    "interns1",
    "kimi",
    "kimi_k2",
    "minimax",
    "minimax-append-think",
    "nano_v3",
    "qwen3",
    "qwen3-thinking",
    "step3",
    "step3p5",
)


@dataclasses.dataclass(kw_only=True)
class HttpArgs:
    """HTTP server."""

    host: str = flag("127.0.0.1", "Address to listen on.")
    port: int = flag(30000, "Port to listen on.", minimum=0, maximum=65535)
    fastapi_root_path: str = flag("", "Path prefix that a proxy strips.", tier="T2")
    grpc_mode: bool = flag(False, "Serve gRPC instead of HTTP.", status=REFUSED, tier="T3")
    skip_server_warmup: bool = flag(False, "Send no warm-up request.")
    warmups: str | None = flag(
        None, "Named warm-up functions, comma separated.", status=REFUSED, tier="T3"
    )
    nccl_port: int | None = flag(
        None,
        "Port where the ranks of one machine meet; unset: a file in a private folder.",
        tier="T2",
        minimum=1,
        maximum=65535,
    )
    api_key: str | None = flag(None, "Key that clients must send as a bearer token.", secret=True)
    admin_api_key: str | None = flag(None, "Key of the management routes.", tier="T2", secret=True)
    file_storage_path: str = flag(
        "sglang_storage", "Folder for uploads; unused.", status=IGNORED, tier="T4"
    )
    enable_cache_report: bool = flag(False, "Report cached prompt tokens in usage.")
    chat_template: str | None = flag(
        None,
        "Name of a conversation template, or a .jinja or .json file; unset: by the model's path, else the tokenizer's.",
    )
    hf_chat_template_name: str | None = flag(
        None, "Which of the tokenizer's named chat templates to use.", tier="T2"
    )
    completion_template: str | None = flag(
        None, "Fill-in-the-middle template.", status=REFUSED, tier="T3"
    )
    reasoning_parser: str | None = flag(
        None,
        "How to split reasoning from the answer.",
        status=REFUSED,
        choices=REASONING_PARSERS,
    )
    tool_call_parser: str | None = flag(
        None, "How to read tool calls.", status=REFUSED, choices=TOOL_CALL_PARSERS
    )
    tool_server: str | None = flag(
        None, "demo or URLs of tool servers for /v1/responses.", status=REFUSED, tier="T3"
    )
    sampling_defaults: str = flag(
        "model",
        "Sampling defaults of the chat routes: the model's generation_config.json or OpenAI's.",
        choices=("openai", "model"),
    )
    enable_custom_logit_processor: bool = flag(
        False,
        "Run Python code that clients send. Never on an open server.",
        status=REFUSED,
        tier="T2",
    )
    enable_return_hidden_states: bool = flag(
        False, "Let requests ask for hidden states.", status=REFUSED, tier="T2"
    )
    enable_return_routed_experts: bool = flag(
        False, "Let requests ask for the routed experts.", status=REFUSED, tier="T3"
    )
    allow_auto_truncate: bool = flag(False, "Cut input that is too long instead of refusing it.")
