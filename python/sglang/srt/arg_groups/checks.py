"""Checks that compare flags with each other; checks of single values live in `fields`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_LOG_LEVELS = ("critical", "fatal", "error", "warning", "warn", "info", "debug", "trace")
_MODALITIES = ("image", "video", "audio")


class PartialPageError(ConfigError, AssertionError):
    """A chunk that is no multiple of the page; callers rely on catching an AssertionError, too."""


def check_combinations(args: ServerArgs) -> None:
    """Raise ConfigError for values that do not go together."""
    _check_http(args)
    _check_logging(args)
    _check_scheduling(args)
    _check_machines(args)
    _check_features(args)


def _check_http(args: ServerArgs) -> None:
    if args.served_model_name is not None and ":" in args.served_model_name:
        raise ConfigError(
            f"--served-model-name {args.served_model_name!r} must not contain ':', "
            "which separates a model from its adapter in requests"
        )
    for name in ("api_key", "admin_api_key"):
        # An unset shell variable would otherwise open the server silently.
        if getattr(args, name) == "":
            raise ConfigError(
                f"--{name.replace('_', '-')} is empty; give a key or leave the flag out"
            )


def _check_logging(args: ServerArgs) -> None:
    for option, level in (
        ("--log-level", args.log_level),
        ("--log-level-http", args.log_level_http),
    ):
        if level is not None and level.lower() not in _LOG_LEVELS:
            raise ConfigError(f"{option} {level!r} is unknown; allowed: {', '.join(_LOG_LEVELS)}")


def _check_scheduling(args: ServerArgs) -> None:
    if args.chunked_prefill_size == 0:
        raise ConfigError("--chunked-prefill-size 0 is invalid; use -1 to prefill whole prompts")
    if args.chunked_prefill_size is not None and args.chunked_prefill_size > 0:
        if args.chunked_prefill_size % args.page_size != 0:
            raise PartialPageError(
                f"--chunked-prefill-size {args.chunked_prefill_size} must be a multiple of "
                f"--page-size {args.page_size}"
            )
    if args.disable_radix_cache and args.enable_hierarchical_cache:
        raise ConfigError(
            "--enable-hierarchical-cache needs the radix cache; drop one of the two flags"
        )
    if args.enable_tokenizer_batch_encode and args.enable_dynamic_batch_tokenizer:
        raise ConfigError(
            "--enable-tokenizer-batch-encode and --enable-dynamic-batch-tokenizer exclude each other"
        )
    if args.enable_priority_scheduling and args.schedule_policy not in ("fcfs", "lof"):
        raise ConfigError(
            f"--enable-priority-scheduling needs --schedule-policy fcfs or lof, "
            f"not {args.schedule_policy}"
        )


def _check_machines(args: ServerArgs) -> None:
    if args.tp_size % args.nnodes:
        raise ConfigError(
            f"--nnodes {args.nnodes} must divide --tp {args.tp_size}: every machine runs as many ranks"
        )
    if args.nnodes > 1 and args.dist_init_addr is None:
        raise ConfigError(
            f"--nnodes {args.nnodes} needs --dist-init-addr host:port, the address of the first machine"
        )
    if args.node_rank >= args.nnodes:
        raise ConfigError(f"--node-rank {args.node_rank} must be below --nnodes {args.nnodes}")
    if args.dist_init_addr is not None:
        host, _, port = args.dist_init_addr.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(
                f"--dist-init-addr {args.dist_init_addr!r} must have the form host:port"
            )


def _check_features(args: ServerArgs) -> None:
    uses_lora = bool(args.enable_lora or args.lora_paths)
    if uses_lora and args.speculative_algorithm in ("EAGLE", "EAGLE3", "NEXTN"):
        raise ConfigError(
            f"LoRA does not work with --speculative-algorithm {args.speculative_algorithm}; drop one"
        )
    for modality in args.limit_mm_data_per_request or {}:
        if modality not in _MODALITIES:
            raise ConfigError(
                f"--limit-mm-data-per-request names {modality!r}; allowed: {', '.join(_MODALITIES)}"
            )
