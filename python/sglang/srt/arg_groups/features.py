"""Flags of multimodal input, structured output, debugging and experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sglang.srt.arg_groups.fields import ACCEPTED, IGNORED, REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class MultimodalArgs:
    """Multimodal input."""

    mm_max_concurrent_calls: int = flag(
        32, "Media requests prepared at once.", tier="T2", minimum=1
    )
    mm_per_request_timeout: float = flag(
        10.0, "Seconds to prepare the media of a request.", tier="T2", minimum=0.0
    )
    mm_process_config: dict = flag(
        {},
        "Processor options under image, video and audio, a JSON object.",
        tier="T2",
    )
    limit_mm_data_per_request: dict | None = flag(
        None, 'Items per request, as {"image": 4}.', tier="T2"
    )
    disable_fast_image_processor: bool = flag(
        False, "Use the slow image processor.", status=ACCEPTED, tier="T2"
    )
    keep_mm_feature_on_device: bool = flag(
        False, "Leave features on the device.", status=ACCEPTED, tier="T2"
    )
    enable_precise_embedding_interpolation: bool = flag(
        False, "Align corners when position embeddings are resized.", status=ACCEPTED, tier="T2"
    )
    mm_enable_dp_encoder: bool = flag(
        False,
        "Whole towers on every tensor-parallel rank, which share the media of a request.",
        tier="T3",
    )
    enable_broadcast_mm_inputs_process: bool = flag(
        False, "Prepare media on one rank.", status=REFUSED, tier="T3"
    )
    enable_prefix_mm_cache: bool = flag(
        False, "Share the encoder's results.", status=REFUSED, tier="T3"
    )


@dataclasses.dataclass(kw_only=True)
class GrammarArgs:
    """Structured output."""

    constrained_json_whitespace_pattern: str | None = flag(
        None, "Regex of the white space allowed in JSON.", tier="T2"
    )
    constrained_json_disable_any_whitespace: bool = flag(
        False, "Allow only compact JSON.", tier="T2"
    )
    disable_outlines_disk_cache: bool = flag(
        False, "Keep outlines from caching on disk.", status=ACCEPTED, tier="T2"
    )


@dataclasses.dataclass(kw_only=True)
class DebugArgs:
    """Hooks and dumps."""

    forward_hooks: str | None = flag(
        None, "Python hooks on modules, a JSON list.", status=REFUSED, tier="T3"
    )
    debug_tensor_dump_output_folder: str | None = flag(
        None, "Write the tensors of every layer here.", status=REFUSED, tier="T3"
    )
    debug_tensor_dump_layers: list[int] | None = flag(
        None, "Layers to write; unset: all.", status=REFUSED, tier="T3"
    )
    debug_tensor_dump_input_file: str | None = flag(
        None, "Input to run instead of requests.", status=REFUSED, tier="T3"
    )
    debug_tensor_dump_inject: bool = flag(
        False, "Replace tensors by dumped ones.", status=REFUSED, tier="T3"
    )
    custom_sigquit_handler: Callable | None = flag(
        None, "Called when a worker dies.", status=REFUSED, tier="T3", cli=False
    )


@dataclasses.dataclass(kw_only=True)
class ExperimentalArgs:
    """Experiments."""

    dllm_algorithm: str | None = flag(
        None, "Decoding of diffusion language models.", status=REFUSED, tier="T3"
    )
    dllm_algorithm_config: str | None = flag(
        None, "Its options, a YAML file.", status=REFUSED, tier="T3"
    )
    # Sparse attention changes results, so it is refused rather than ignored.
    enable_double_sparsity: bool = flag(
        False, "Attend to the heaviest tokens only.", status=REFUSED, tier="T4"
    )
    ds_channel_config_path: str | None = flag(
        None, "Channels of double sparsity.", status=IGNORED, tier="T4"
    )
    ds_heavy_channel_num: int = flag(32, "Heavy channels.", status=IGNORED, tier="T4")
    ds_heavy_token_num: int = flag(256, "Heavy tokens.", status=IGNORED, tier="T4")
    ds_heavy_channel_type: str = flag(
        "qk", "Where channels are measured.", status=IGNORED, tier="T4"
    )
    ds_sparse_decode_threshold: int = flag(
        4096, "Shortest context that is sparse.", status=IGNORED, tier="T4"
    )
    kt_weight_path: str | None = flag(
        None, "Expert weights of ktransformers.", status=IGNORED, tier="T4"
    )
    kt_method: str = flag("AMXINT4", "Their quantization.", status=IGNORED, tier="T4")
    kt_cpuinfer: int | None = flag(None, "CPU threads.", status=IGNORED, tier="T4")
    kt_threadpool_count: int = flag(2, "Thread pools.", status=IGNORED, tier="T4")
    kt_num_gpu_experts: int | None = flag(
        None, "Experts kept on the GPU.", status=IGNORED, tier="T4"
    )
    kt_max_deferred_experts_per_token: int | None = flag(
        None, "Experts computed one layer later.", status=IGNORED, tier="T4"
    )
