"""The names that model files written elsewhere import: each group of names completes a group of files.

A file counts as complete when every name of its group and of the groups before imports, in a process without arguments, groups or a GPU.
The first group is in `test_author_names.py`, with its signatures.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from test_author_names import NAMES as FIRST_NAMES

# Module below `sglang.` -> names; "*" is the module itself.
SECOND_NAMES: dict[str, str] = {
    "srt.batch_overlap.two_batch_overlap": "model_forward_maybe_tbo",
    "srt.compilation.compilation_config": "register_split_op",
    "srt.compilation.piecewise_context_manager": "get_forward_context is_in_piecewise_cuda_graph",
    "srt.configs": "DbrxConfig DotsOCRConfig",
    "srt.configs.dots_vlm": "DotsVisionConfig",
    "srt.configs.falcon_h1": "FalconH1Config",
    "srt.configs.granitemoehybrid": "GraniteMoeHybridConfig",
    "srt.configs.janus_pro": "*",
    "srt.configs.jet_nemotron": "JetBlockConfig JetNemotronConfig",
    "srt.configs.jet_vlm": "JetVLMConfig",
    "srt.configs.lfm2": "Lfm2Config",
    "srt.configs.lfm2_moe": "Lfm2MoeConfig",
    "srt.configs.points_v15_chat": "POINTSV15ChatConfig",
    "srt.configs.qwen3_5": "Qwen3_5Config Qwen3_5MoeConfig Qwen3_5TextConfig",
    "srt.configs.qwen3_next": "Qwen3NextConfig",
    "srt.configs.qwen3_vl": "Qwen3VLConfig Qwen3VLMoeConfig Qwen3VLMoeTextConfig Qwen3VLVisionConfig",
    "srt.distributed": "get_moe_expert_parallel_rank get_moe_expert_parallel_world_size "
    "get_moe_tensor_parallel_rank get_moe_tensor_parallel_world_size parallel_state "
    "split_tensor_along_last_dim tensor_model_parallel_all_gather",
    "srt.environ": "envs",
    "srt.eplb.expert_location": "ModelConfigForExpertLocation",
    "srt.eplb.expert_location_dispatch": "ExpertLocationDispatchInfo",
    "srt.layers.attention.fla.fused_recurrent": "fused_recurrent_gated_delta_rule_update",
    "srt.layers.attention.fla.layernorm_gated": "RMSNorm",
    "srt.layers.attention.hybrid_linear_attn_backend": "HybridLinearAttnBackend Mamba2AttnBackend MambaAttnBackendBase",
    "srt.layers.attention.mamba.causal_conv1d": "causal_conv1d_fn causal_conv1d_update",
    "srt.layers.attention.mamba.mamba": "MambaMixer2 mamba_v2_sharded_weight_loader",
    "srt.layers.attention.triton_backend": "TritonAttnBackend",
    "srt.layers.attention.vision": "SingletonCache",
    "srt.layers.communicator": "ScatterMode enable_moe_dense_fully_dp",
    "srt.layers.dp_attention": "get_attention_dp_size",
    "srt.layers.moe": "get_deepep_mode get_moe_a2a_backend get_moe_runner_backend "
    "should_use_flashinfer_cutlass_moe_fp4_allgather",
    "srt.layers.moe.ep_moe.layer": "DeepEPMoE get_moe_impl_class",
    "srt.layers.moe.fused_moe_triton.layer": "FusedMoE",
    "srt.layers.moe.token_dispatcher": "DeepEPDispatcher",
    "srt.layers.moe.topk": "StandardTopKOutput TopKOutputFormat",
    "srt.layers.moe.utils": "RoutingMethodType filter_moe_weight_param_global_expert get_moe_a2a_backend",
    "srt.layers.quantization.fp8_utils": "dequant_mxfp4",
    "srt.layers.radix_linear_attention": "RadixLinearAttention",
    "srt.layers.rotary_embedding": "MRotaryEmbedding",
    "srt.layers.sparse_pooler": "SparsePooler",
    "srt.managers.mm_utils": "* MultiModalityDataPaddingPatternTokenPairs MultimodalDataItem MultimodalInputs",
    "srt.model_executor.cuda_graph_runner": "get_is_capture_mode",
    "srt.model_executor.forward_batch_info": "ForwardMode",
    "srt.model_loader.utils": "set_default_torch_dtype",
    "srt.model_loader.weight_utils": "* replace_prefix replace_substrings sharded_weight_loader",
    "srt.models.utils": "RotaryPosMixin WeightsMapper compute_cu_seqlens_from_grid_numpy "
    "create_fused_set_kv_buffer_arg enable_fused_set_kv_buffer permute_inv",
    "srt.multimodal.internvl_vit_cuda_graph_runner": "InternViTCudaGraphRunner",
    "srt.multimodal.mm_utils": "get_anyres_image_grid_shape run_dp_sharded_vision_model unpad_image "
    "unpad_image_shape",
    "srt.multimodal.vit_cuda_graph_runner": "ViTCudaGraphRunner",
    "srt.utils": "* BumpAllocator LazyValue cpu_has_amx_support fast_topk get_compiler_backend "
    "get_int_env_var is_flashinfer_available is_non_idle_and_non_empty logger "
    "set_weight_attrs use_intel_amx_backend",
    "srt.utils.common": "get_current_device_stream_fast",
    "srt.utils.custom_op": "register_custom_op",
    "srt.utils.hf_transformers_utils": "download_from_hf",
}
THIRD_NAMES: dict[str, str] = {
    "srt.batch_overlap.single_batch_overlap": "SboFlags compute_overlap_args",
    "srt.batch_overlap.two_batch_overlap": "MaybeTboDeepEPDispatcher",
    "srt.configs": "LongcatFlashConfig",
    "srt.configs.deepseek_ocr": "DeepseekVLV2Config",
    "srt.configs.dots_vlm": "DotsVLMConfig",
    "srt.configs.kimi_k25": "KimiK25Config KimiK25VisionConfig",
    "srt.configs.model_config": "get_nsa_index_head_dim get_nsa_index_n_heads get_nsa_index_topk is_deepseek_nsa",
    "srt.configs.step3_vl": "Step3TextConfig Step3VisionEncoderConfig",
    "srt.distributed.device_communicators.pynccl_allocator": "use_symmetric_memory",
    "srt.distributed.parallel_state": "GroupCoordinator",
    "srt.eplb.expert_distribution": "ExpertDistributionRecorder",
    "srt.layers": "deep_gemm_wrapper",
    "srt.layers.amx_utils": "PackWeightMethod",
    "srt.layers.attention.fla.layernorm_gated": "layernorm_fn",
    "srt.layers.attention.nsa.dequant_k_cache": "dequantize_k_cache_paged",
    "srt.layers.attention.nsa.nsa_indexer": "Indexer",
    "srt.layers.attention.nsa.utils": "can_cp_split cp_all_gather_rerange_output cp_split_and_rebuild_data "
    "cp_split_and_rebuild_position is_nsa_enable_prefill_cp nsa_use_prefill_cp "
    "prepare_input_dp_with_cp_dsa",
    "srt.layers.attention.tbo_backend": "TboAttnBackend",
    "srt.layers.attention.utils": "concat_and_cast_mha_k_triton",
    "srt.layers.communicator": "get_attn_tp_context",
    "srt.layers.communicator_nsa_cp": "NSACPLayerCommunicator",
    "srt.layers.dp_attention": "get_attention_cp_rank get_attention_cp_size is_allocation_symmetric",
    "srt.layers.moe.ep_moe.kernels": "zero_experts_compute_triton",
    "srt.layers.moe.fused_moe_triton.layer": "get_moe_runner_backend",
    "srt.layers.moe.kt_ep_wrapper": "KTEPWrapperMethod",
    "srt.layers.moe.token_dispatcher.base": "BaseDispatcher CombineInput DispatchOutput",
    "srt.layers.quantization": "Fp8Config",
    "srt.layers.quantization.fp8": "Fp8Config",
    "srt.layers.quantization.fp8_kernel": "fp8_dtype is_fp8_fnuz per_tensor_quant_mla_fp8 "
    "per_token_group_quant_mla_deep_gemm_masked_fp8",
    "srt.layers.quantization.fp8_utils": "block_quant_dequant block_quant_to_tensor_quant channel_quant_to_tensor_quant "
    "inverse_transform_scale_ue8m0 normalize_e4m3fn_to_e4m3fnuz quant_weight_ue8m0 "
    "requant_weight_ue8m0_inplace",
    "srt.layers.quantization.int8_utils": "block_dequant",
    "srt.layers.rotary_embedding": "Ernie4_5_VLRotaryEmbedding get_rope_wrapper",
    "srt.layers.sampler": "create_sampler",
    "srt.model_loader.utils": "maybe_executor_submit should_async_load should_deepgemm_weight_requant_ue8m0",
    "srt.speculative.spec_info": "SpeculativeAlgorithm",
    "srt.utils": "bind_or_assign get_bool_env_var get_device_sm is_gfx95_supported is_hip "
    "is_nvidia_cublas_version_ge_12_9 is_sm100_supported log_info_on_rank0 "
    "next_power_of_2",
    "srt.utils.common": "rank0_log",
}

FIRST_FILES = (
    "afmoe apertus arcee baichuan bert chatglm clip deepseek exaone exaone4 gemma gemma2 "
    "gemma2_reward gemma3_causal gemma3n_audio gemma3n_causal gemma3n_mm glm4 glm4v glm_ocr "
    "glm_ocr_nextn glmasr gpt2 gpt_bigcode gpt_j granite granitemoe idefics2 internlm2 "
    "internlm2_reward iquest_loopcoder kimi_vl_moonvit llama llama_classification llama_eagle "
    "llama_eagle3 llama_embedding llama_reward llavavid midashenglm mimo mimo_mtp mindspore "
    "minicpm minicpm3 ministral3 mistral mixtral mixtral_quant mllama mllama4 nemotron_nas olmo "
    "olmoe opt orion persimmon phi phi3_small phi4mm phi4mm_audio phi4mm_utils phimoe qwen "
    "qwen2 qwen2_audio qwen2_classification qwen2_eagle qwen2_rm qwen3 qwen3_classification "
    "qwen3_rm siglip solar stablelm starcoder2 step3_vl_10b teleflm torch_native_llama "
    "transformers xverse xverse_moe"
)
SECOND_FILES = (
    "bailing_moe commandr dbrx deepseek_janus_pro dots_ocr dots_vlm_vit exaone_moe "
    "exaone_moe_mtp falcon_h1 gemma3_mm gpt_oss granitemoehybrid interns1 interns1pro internvl "
    "jet_nemotron jet_vlm lfm2 lfm2_moe llada2 llama4 llava mimo_v2_flash mimo_v2_flash_nextn "
    "minicpmo minicpmv minimax_m2 nvila nvila_lite olmo2 points_v15_chat qwen2_5_vl qwen2_moe "
    "qwen2_vl qwen3_5 qwen3_5_mtp qwen3_moe qwen3_next qwen3_next_mtp qwen3_vl qwen3_vl_moe "
    "radio roberta sarashina2_vision sdar sdar_moe step3p5 step3p5_mtp yivl"
)
THIRD_FILES = (
    "bailing_moe_linear bailing_moe_nextn deepseek_nextn deepseek_ocr deepseek_v2 dots_vlm "
    "ernie4 ernie45_moe_vl ernie45_vl ernie4_eagle glm4_moe glm4_moe_lite glm4_moe_nextn "
    "glm4v_moe hunyuan kimi_k25 lightonocr longcat_flash longcat_flash_nextn mistral_large_3 "
    "mistral_large_3_eagle paddleocr_vl pixtral step3_vl"
)

GROUPS = [(FIRST_NAMES, FIRST_FILES), (SECOND_NAMES, SECOND_FILES), (THIRD_NAMES, THIRD_FILES)]
NUM_FILES = 163
GOAL = 110


def pairs(names: dict[str, str]) -> list[tuple[str, str]]:
    return [(f"sglang.{module}", name) for module, row in names.items() for name in row.split()]


ALL = [pair for names, _ in GROUPS[1:] for pair in pairs(names)]


def imports(module: str, name: str) -> bool:
    """As `from module import name` does it: an attribute, or a module below."""
    try:
        found = importlib.import_module(module)
        if name != "*" and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_the_tables_are_complete() -> None:
    assert [len(pairs(names)) for names, _ in GROUPS] == [84, 103, 73]
    assert [len(files.split()) for _, files in GROUPS] == [82, 49, 24]
    every_file = [name for _, files in GROUPS for name in files.split()]
    assert len(set(every_file)) == len(every_file) <= NUM_FILES


@pytest.mark.parametrize(("module", "name"), ALL, ids=lambda value: value)
def test_name_imports(module: str, name: str) -> None:
    scope: dict[str, object] = {}
    exec(f"import {module}" if name == "*" else f"from {module} import {name}", scope)
    assert scope.get(name, scope.get("sglang")) is not None


def test_enough_files_are_complete() -> None:
    complete: list[str] = []
    for names, files in GROUPS:
        if not all(imports(*pair) for pair in pairs(names)):
            break
        complete += files.split()
    assert len(complete) >= GOAL
    assert len(complete) == 155


def test_names_import_in_a_process_without_arguments_groups_or_gpu() -> None:
    lines = [f"from {module} import {name}" for module, name in ALL if name != "*"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)


def test_an_absent_class_says_what_is_missing() -> None:
    from sglang.srt.layers.moe.ep_moe.layer import DeepEPMoE
    from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
    from sglang.srt.utils.absent import absent_function

    assert not isinstance(torch.nn.Linear(1, 1), (DeepEPMoE, RadixLinearAttention))
    with pytest.raises(
        NotImplementedError, match="RadixLinearAttention .* linear attention is not"
    ):
        RadixLinearAttention(layer_id=0, num_q_heads=1)
    with pytest.raises(NotImplementedError, match="fly cannot be called: wings is not"):
        absent_function("fly", "wings")(1)


def test_aliases_are_one_object() -> None:
    from sglang.srt.configs import DotsVLMConfig as short
    from sglang.srt.configs.dots_vlm import DotsVLMConfig as long
    from sglang.srt.layers.moe.fused_moe_triton.layer import UnquantizedFusedMoEMethod as one
    from sglang.srt.layers.moe.unquantized import UnquantizedFusedMoEMethod as two
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod as three

    assert short is long and one is two is three


def test_nested_configs_are_read() -> None:
    from sglang.srt.configs import DotsOCRConfig, DotsVLMConfig
    from sglang.srt.configs.janus_pro import MultiModalityConfig, VisionConfig
    from sglang.srt.configs.points_v15_chat import POINTSV15ChatConfig

    dots = DotsVLMConfig.from_dict({"vision_config": {"embed_dim": 8}, "hidden_size": 5})
    assert (dots.vision_config.embed_dim, dots.vision_config.patch_size) == (8, 14)
    assert dots.hidden_size == 5
    ocr = DotsOCRConfig(vision_config={"embed_dim": 8}, hidden_size=4, num_attention_heads=2)
    assert (ocr.vision_config.embed_dim, ocr.hidden_size) == (8, 4)
    points = POINTSV15ChatConfig(llm_config={"vocab_size": 77})
    assert points.llm_config.vocab_size == 77
    janus = MultiModalityConfig(vision_config={"cls": "Tower", "params": {"width": 3}})
    assert isinstance(janus.vision_config, VisionConfig)
    assert (janus.vision_config.cls, janus.vision_config.params) == ("Tower", {"width": 3})


def test_sparse_attention_is_a_fact_of_the_config() -> None:
    from transformers import PretrainedConfig

    from sglang.srt.configs.model_config import get_nsa_index_topk, is_deepseek_nsa

    plain = PretrainedConfig(architectures=["DeepseekV3ForCausalLM"])
    sparse = PretrainedConfig(architectures=["DeepseekV32ForCausalLM"], index_topk=2048)
    assert [is_deepseek_nsa(config) for config in (plain, sparse)] == [False, True]
    assert get_nsa_index_topk(sparse) == 2048
    with pytest.raises(ValueError, match="no index_topk"):
        get_nsa_index_topk(plain)


def test_overlap_runs_the_layers_in_order() -> None:
    from sglang.srt.batch_overlap.single_batch_overlap import SboFlags
    from sglang.srt.batch_overlap.two_batch_overlap import model_forward_maybe_tbo

    class Layer(torch.nn.Module):
        def forward(self, positions, hidden_states, forward_batch, residual):
            return hidden_states * 2 + positions, hidden_states

    x, positions = torch.ones(3, 2), torch.tensor(1.0)
    hidden, residual = model_forward_maybe_tbo(
        [Layer(), Layer()], True, positions, None, x, None, None
    )
    assert hidden.tolist() == [[7.0, 7.0]] * 3 and residual.tolist() == [[3.0, 3.0]] * 3
    assert not SboFlags.fuse_shared_experts_inside_sbo()


def test_speculative_algorithms_by_name() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    assert SpeculativeAlgorithm.from_string(None).is_none()
    assert SpeculativeAlgorithm.from_string("eagle3").is_eagle()
    assert SpeculativeAlgorithm.from_string("NEXTN") is SpeculativeAlgorithm.EAGLE
    with pytest.raises(ValueError, match="'medusa' is unknown; known: NONE, EAGLE"):
        SpeculativeAlgorithm.from_string("medusa")


def test_attention_context_never_scatters() -> None:
    from sglang.srt.layers.communicator import get_attn_tp_context

    context = get_attn_tp_context()
    context.init_context(None, False)
    with context.maybe_input_scattered(None):  # type: ignore[arg-type]
        assert not context.input_scattered
    with pytest.raises(ValueError, match="not scattered"):
        context.fetch_qkv_latent()
