"""The names that half of the known model files need: each imports, and takes the arguments that authors pass."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

# Module below `sglang.` -> names; "*" is the module itself.
NAMES: dict[str, str] = {
    "srt.configs": "ChatGLMConfig MoonViTConfig",
    "srt.configs.step3_vl": "Step3VLConfig",
    "srt.distributed": "divide get_pp_group get_tensor_model_parallel_rank get_tensor_model_parallel_world_size "
    "tensor_model_parallel_all_reduce",
    "srt.distributed.parallel_state": "* get_pp_group get_tensor_model_parallel_rank get_tensor_model_parallel_world_size",
    "srt.eplb.expert_distribution": "get_global_expert_distribution_recorder",
    "srt.layers.activation": "GeluAndMul NewGELU QuickGELU SiluAndMul XIELU get_act_fn",
    "srt.layers.attention": "vision_utils",
    "srt.layers.attention.vision": "VisionAttention",
    "srt.layers.communicator": "LayerCommunicator LayerScatterModes",
    "srt.layers.dp_attention": "get_attention_tp_rank get_attention_tp_size get_local_attention_dp_size "
    "is_dp_attention_enabled",
    "srt.layers.layernorm": "Gemma3RMSNorm GemmaRMSNorm LayerNorm RMSNorm",
    "srt.layers.linear": "ColumnParallelLinear MergedColumnParallelLinear QKVParallelLinear ReplicatedLinear "
    "RowParallelLinear",
    "srt.layers.logits_processor": "LogitsProcessor LogitsProcessorOutput",
    "srt.layers.moe.fused_moe_triton": "FusedMoE fused_moe",
    "srt.layers.moe.fused_moe_triton.fused_moe": "fused_moe",
    "srt.layers.moe.moe_runner": "MoeRunnerConfig",
    "srt.layers.moe.topk": "TopK",
    "srt.layers.pooler": "CrossEncodingPooler EmbeddingPoolerOutput Pooler PoolingType",
    "srt.layers.quantization": "QuantizationConfig",
    "srt.layers.quantization.base_config": "QuantizationConfig",
    "srt.layers.radix_attention": "AttentionType RadixAttention",
    "srt.layers.rotary_embedding": "apply_rotary_pos_emb get_rope",
    "srt.layers.utils": "PPMissingLayer get_layer_id",
    "srt.layers.vocab_parallel_embedding": "DEFAULT_VOCAB_PADDING_SIZE ParallelLMHead VocabParallelEmbedding",
    "srt.managers.mm_utils": "MultiModalityDataPaddingPatternMultimodalTokens general_mm_embed_routine",
    "srt.managers.schedule_batch": "Modality MultimodalDataItem MultimodalInputs flatten_nested_list",
    "srt.model_executor.forward_batch_info": "ForwardBatch PPProxyTensors",
    "srt.model_executor.model_runner": "ForwardBatch",
    "srt.model_loader.weight_utils": "default_weight_loader kv_cache_scales_loader maybe_remap_kv_scale_name",
    "srt.models.registry": "import_model_classes",
    "srt.models.utils": "apply_qk_norm",
    "srt.multimodal.mm_utils": "run_dp_sharded_mrope_vision_model",
    "srt.server_args": "get_global_server_args",
    "srt.utils": "add_prefix flatten_nested_list is_cpu is_cuda is_npu make_layers print_warning_once",
    "srt.utils.hf_transformers_utils": "get_processor",
    "utils": "get_exception_traceback logger",
}
PAIRS = [(f"sglang.{module}", name) for module, names in NAMES.items() for name in names.split()]

# Argument names in order, after self; a `+` ends the positional ones that are required to match, keyword-only follow.
LINEAR_TAIL = "skip_bias_add params_dtype quant_config"
SIGNATURES: dict[str, str] = {
    "srt.layers.linear:ReplicatedLinear": f"input_size output_size bias {LINEAR_TAIL} prefix",
    "srt.layers.linear:ColumnParallelLinear": f"input_size output_size bias gather_output {LINEAR_TAIL} output_sizes prefix "
    "tp_rank tp_size use_presharded_weights skip_block_quant_check",
    "srt.layers.linear:MergedColumnParallelLinear": f"input_size output_sizes bias gather_output {LINEAR_TAIL} prefix tp_rank tp_size "
    "use_presharded_weights",
    "srt.layers.linear:QKVParallelLinear": "hidden_size head_size total_num_heads total_num_kv_heads bias skip_bias_add params_dtype "
    "quant_config prefix tp_rank tp_size load_presharded_attn v_head_size skip_block_quant_check",
    "srt.layers.linear:RowParallelLinear": "input_size output_size bias input_is_parallel skip_bias_add params_dtype reduce_results "
    "quant_config prefix tp_rank tp_size use_presharded_weights use_dp_attention_reduce",
    "srt.layers.vocab_parallel_embedding:VocabParallelEmbedding": "num_embeddings embedding_dim params_dtype org_num_embeddings "
    "padding_size quant_config prefix enable_tp use_attn_tp_group use_presharded_weights",
    "srt.layers.vocab_parallel_embedding:ParallelLMHead": "num_embeddings embedding_dim bias params_dtype org_num_embeddings "
    "padding_size quant_config prefix use_attn_tp_group use_presharded_weights",
    "srt.layers.logits_processor:LogitsProcessor": "config skip_all_gather logit_scale return_full_logits",
    "srt.layers.logits_processor:LogitsProcessor.forward": "input_ids hidden_states lm_head logits_metadata aux_hidden_states "
    "hidden_states_before_norm",
    "srt.layers.layernorm:RMSNorm": "hidden_size eps var_hidden_size cast_x_before_out_mul fp32_residual has_weight weight_dtype "
    "override_orig_dtype",
    "srt.layers.layernorm:RMSNorm.forward_native": "x residual post_residual_addition",
    "srt.layers.layernorm:GemmaRMSNorm": "hidden_size eps",
    "srt.layers.layernorm:Gemma3RMSNorm": "dim eps",
    "srt.layers.layernorm:LayerNorm": "hidden_size eps elementwise_affine bias dtype",
    "srt.layers.activation:SiluAndMul": "",
    "srt.layers.activation:GeluAndMul": "approximate",
    "srt.layers.activation:XIELU": "alpha_p_init alpha_n_init beta eps dtype with_vector_loads",
    "srt.layers.activation:get_act_fn": "act_fn_name quant_config intermediate_size input_is_parallel params_dtype",
    "srt.layers.pooler:Pooler": "pooling_type normalize",
    "srt.layers.pooler:CrossEncodingPooler": "config classifier pooler",
    "srt.layers.rotary_embedding:get_rope": "head_size rotary_dim max_position base is_neox_style rope_scaling dtype "
    "partial_rotary_factor dual_chunk_attention_config",
    "srt.layers.rotary_embedding:apply_rotary_pos_emb": "q k cos sin unsqueeze_dim",
    "srt.layers.radix_attention:RadixAttention": "num_heads head_dim scaling num_kv_heads layer_id logit_cap v_head_dim "
    "sliding_window_size is_cross_attention pos_encoding_mode logit_capping_method quant_config attn_type use_irope prefix",
    "srt.layers.radix_attention:RadixAttention.forward": "q k v forward_batch save_kv_cache **kwargs",
    "srt.layers.attention.vision:VisionAttention": "embed_dim num_heads projection_size use_qkv_parallel qkv_backend quant_config "
    "dropout softmax_in_single_precision flatten_batch prefix proj_bias num_dummy_heads qkv_bias qk_normalization "
    "qk_normalization_by_head_size layer_norm_eps customized_position_embedding_applier use_data_parallel use_dp_attention_reduce "
    "aux_stream **kwargs",
    "srt.layers.attention.vision:VisionAttention.forward": "x cu_seqlens position_embeddings rotary_pos_emb_cos rotary_pos_emb_sin "
    "attention_mask **kwargs",
    "srt.layers.communicator:LayerScatterModes.init_new": "num_layers layer_id is_layer_sparse is_previous_layer_sparse "
    "is_next_layer_sparse",
    "srt.layers.communicator:LayerCommunicator": "layer_scatter_modes input_layernorm post_attention_layernorm allow_reduce_scatter "
    "is_last_layer qkv_latent_func",
    "srt.layers.communicator:LayerCommunicator.prepare_attn": "hidden_states residual forward_batch quant_format "
    "post_residual_addition",
    "srt.layers.communicator:LayerCommunicator.prepare_attn_and_capture_last_layer_outputs": "hidden_states residual forward_batch "
    "captured_last_layer_outputs post_residual_addition",
    "srt.layers.communicator:LayerCommunicator.prepare_mlp": "hidden_states residual forward_batch cache",
    "srt.layers.communicator:LayerCommunicator.postprocess_layer": "hidden_states residual forward_batch",
    "srt.layers.moe.topk:TopK": "top_k layer_id use_grouped_topk topk_group num_expert_group renormalize num_fused_shared_experts "
    "custom_routing_function scoring_func correction_bias quant_config routed_scaling_factor apply_routed_scaling_factor_on_output "
    "output_format fused_shared_experts_scaling_factor",
    "srt.layers.moe.topk:TopK.forward_native": "hidden_states router_logits num_token_non_padded expert_location_dispatch_info",
    "srt.layers.moe.fused_moe_triton:FusedMoE": "num_experts hidden_size intermediate_size layer_id top_k num_fused_shared_experts "
    "params_dtype reduce_results quant_config prefix activation apply_router_weight_on_input use_presharded_weights inplace no_combine "
    "routed_scaling_factor gemm1_alpha gemm1_clamp_limit use_weight_loader_fused with_bias routing_method_type is_gated",
    "srt.layers.moe.fused_moe_triton:FusedMoE.forward": "hidden_states topk_output",
    "srt.layers.moe.fused_moe_triton:FusedMoE.weight_loader": "param loaded_weight weight_name shard_id expert_id",
    "srt.layers.moe.fused_moe_triton:FusedMoE.make_expert_params_mapping": "ckpt_gate_proj_name ckpt_down_proj_name "
    "ckpt_up_proj_name num_experts",
    "srt.layers.moe.fused_moe_triton.fused_moe:fused_moe": "hidden_states w1 w2 topk_output moe_runner_config b1 b2 **quantization",
    "srt.managers.mm_utils:general_mm_embed_routine": "input_ids forward_batch language_model multimodal_model data_embedding_funcs "
    "placeholder_tokens use_deepstack **kwargs",
    "srt.managers.mm_utils:MultiModalityDataPaddingPatternMultimodalTokens": "",
    "srt.managers.schedule_batch:MultimodalDataItem": "modality hash pad_value offsets format feature precomputed_embeddings "
    "model_specific_data",
    "srt.managers.schedule_batch:flatten_nested_list": "nested_list",
    "srt.model_executor.forward_batch_info:PPProxyTensors": "tensors",
    "srt.model_loader.weight_utils:default_weight_loader": "param loaded_weight",
    "srt.model_loader.weight_utils:maybe_remap_kv_scale_name": "name params_dict",
    "srt.model_loader.weight_utils:kv_cache_scales_loader": "filename tp_rank tp_size num_hidden_layers model_type",
    "srt.models.registry:import_model_classes": "package_name strict",
    "srt.models.utils:apply_qk_norm": "q k q_norm k_norm head_dim alt_stream allow_inplace",
    "srt.multimodal.mm_utils:run_dp_sharded_mrope_vision_model": "vision_model pixel_values grid_thw_list rope_type",
    "srt.utils:add_prefix": "name prefix",
    "srt.utils:make_layers": "num_hidden_layers layer_fn pp_rank pp_size prefix return_tuple offloader_kwargs",
    "srt.utils:print_warning_once": "msg",
    "srt.distributed:divide": "numerator denominator",
    "srt.distributed:tensor_model_parallel_all_reduce": "input_",
    "srt.models.llama:LlamaForCausalLM": "config quant_config prefix",
}
KEYWORD_ONLY = {
    "srt.layers.vocab_parallel_embedding:VocabParallelEmbedding": "params_dtype",
    "srt.layers.moe.topk:TopK": "layer_id",
    "srt.layers.moe.topk:TopK.forward_native": "num_token_non_padded",
    "srt.multimodal.mm_utils:run_dp_sharded_mrope_vision_model": "rope_type",
}


def test_the_list_is_complete() -> None:
    assert len(PAIRS) == len(set(PAIRS)) == 84


@pytest.mark.parametrize(("module", "name"), PAIRS, ids=lambda value: value)
def test_name_imports(module: str, name: str) -> None:
    scope: dict[str, object] = {}
    exec(f"import {module}" if name == "*" else f"from {module} import {name}", scope)
    assert scope.get(name, scope.get("sglang")) is not None


def test_names_import_in_a_process_without_arguments_groups_or_gpu() -> None:
    lines = [f"from {module} import {name}" for module, name in PAIRS if name != "*"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)


def test_aliases_are_one_object() -> None:
    from sglang.srt.layers.quantization import QuantizationConfig as short
    from sglang.srt.layers.quantization.base_config import QuantizationConfig as long
    from sglang.srt.managers.schedule_batch import flatten_nested_list as one
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch as batch
    from sglang.srt.model_executor.model_runner import ForwardBatch as same_batch
    from sglang.srt.utils import flatten_nested_list as two

    assert short is long and one is two and batch is same_batch


def find(path: str) -> object:
    module, _, qualname = path.partition(":")
    value: object = importlib.import_module(f"sglang.{module}")
    for part in qualname.split("."):
        value = getattr(value, part)
    return value


def parameters(value: object) -> list[inspect.Parameter]:
    function = value.__init__ if isinstance(value, type) else value  # type: ignore[misc]
    if isinstance(value, type) and value.__init__ is object.__init__:  # type: ignore[misc]
        return []
    found = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    return [p for p in found if p.name != "self"]


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature(path: str) -> None:
    """The contract's arguments come first and in order; more may follow if they have defaults."""
    found = parameters(find(path))
    names = [("**" if p.kind is p.VAR_KEYWORD else "") + p.name for p in found]
    expected = SIGNATURES[path].split()
    assert names[: len(expected)] == expected
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in found[len(expected) :])


@pytest.mark.parametrize("path", KEYWORD_ONLY)
def test_keyword_only(path: str) -> None:
    kinds = {p.name: p.kind for p in parameters(find(path))}
    assert kinds[KEYWORD_ONLY[path]] is inspect.Parameter.KEYWORD_ONLY


def test_exception_traceback_helper() -> None:
    from sglang.utils import get_exception_traceback

    try:
        raise KeyError("my key")
    except KeyError:
        assert "KeyError: 'my key'" in get_exception_traceback()


def test_recorder_records_nothing_and_has_the_calls() -> None:
    from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder

    recorder = get_global_expert_distribution_recorder()
    with recorder.with_current_layer(3), recorder.disable_this_region():
        recorder.on_select_experts(None)
    assert recorder is get_global_expert_distribution_recorder()


def test_config_classes_read_published_keys() -> None:
    from sglang.srt.configs import ChatGLMConfig, MoonViTConfig
    from sglang.srt.configs.step3_vl import Step3VLConfig

    glm = ChatGLMConfig(num_layers=3, padded_vocab_size=77, multi_query_group_num=2)
    assert (glm.num_hidden_layers, glm.vocab_size, glm.n_head_kv) == (3, 77, 2)
    assert MoonViTConfig(hidden_size=12).hidden_size == 12
    step = Step3VLConfig(text_config={"hidden_size": 8}, vision_config={"patch_size": 7})
    assert (step.hidden_size, step.text_config.hidden_size, step.vision_config.patch_size) == (
        8,
        8,
        7,
    )
    with pytest.raises(ImportError):
        exec("from sglang.srt.configs import NoSuchConfig")


def test_kv_cache_scales(tmp_path) -> None:
    from sglang.srt.model_loader.weight_utils import kv_cache_scales_loader

    path = tmp_path / "scales.json"
    path.write_text(
        '{"model_type": "llama", "kv_cache": {"scaling_factor": {"0": {"1": 0.5, "0": 0.25}}}}'
    )
    assert kv_cache_scales_loader(str(path), 0, 1, 2, "llama") == [(0, 0.25), (1, 0.5)]
    for arguments in [(1, 2, 2, "llama"), (0, 1, 3, "llama"), (0, 1, 2, "qwen2")]:
        with pytest.raises(ValueError, match="scales"):
            kv_cache_scales_loader(str(path), *arguments)
