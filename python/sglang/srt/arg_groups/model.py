"""Flags that say which model and tokenizer to load, and how."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import IGNORED, REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class ModelArgs:
    """Model and tokenizer."""

    model_path: str | None = flag(
        None,
        "Folder or hub id of the model; unset: the small demo model that comes with the package. "
        "none or dummy skips what depends on a model.",
        aliases=("--model",),
    )
    tokenizer_path: str | None = flag(
        None, "Folder or hub id of the tokenizer; unset: the model's."
    )
    tokenizer_mode: str = flag(
        "auto",
        "auto prefers the fast tokenizer; slow forces the Python one.",
        tier="T2",
        choices=("auto", "slow"),
    )
    tokenizer_worker_num: int = flag(
        1, "Tokenizer processes.", status=REFUSED, tier="T3", minimum=1
    )
    skip_tokenizer_init: bool = flag(False, "Load no tokenizer: token ids in, token ids out.")
    load_format: str = flag(
        "auto",
        "Format of the weights: auto takes safetensors, else .bin; dummy makes random weights.",
        choices=(
            "auto",
            "pt",
            "safetensors",
            "npcache",
            "dummy",
            "sharded_state",
            "gguf",
            "bitsandbytes",
            "layered",
            "flash_rl",
            "remote",
            "remote_instance",
            "fastsafetensors",
            "private",
        ),
        supports=("auto", "pt", "safetensors", "dummy"),
    )
    model_loader_extra_config: str = flag(
        "{}", "Options of the loader, a JSON object.", tier="T2", is_json=True
    )
    trust_remote_code: bool = flag(False, "Run Python code that comes with the model.")
    context_length: int | None = flag(
        None, "Context length in tokens; unset: the model's own.", minimum=1
    )
    is_embedding: bool = flag(False, "Serve a causal model as an embedder.", status=REFUSED)
    enable_multimodal: bool | None = flag(
        None, "Accept images, video and audio; unset: as the architecture says."
    )
    revision: str | None = flag(None, "Branch, tag or commit on the hub.")
    model_impl: str = flag(
        "auto",
        "Model class: sglang is our own, transformers a wrapper; auto takes ours where there is one.",
        choices=("auto", "sglang", "transformers", "mindspore"),
        supports=("auto", "sglang", "transformers"),
    )
    json_model_override_args: str = flag(
        "{}", "Values laid over the model's config, a JSON object.", is_json=True
    )
    served_model_name: str | None = flag(
        None, "Name in the OpenAI routes, without a colon; unset: the model path."
    )
    preferred_sampling_params: str | None = flag(
        None,
        "Sampling defaults below the request's own, a JSON object; shown in /model_info.",
        tier="T2",
        is_json=True,
    )
    weight_version: str = flag("default", "Label of the weights in answers.", tier="T2")
    download_dir: str | None = flag(None, "Folder for downloads; unset: the hub's cache.")
    model_checksum: str | None = flag(
        None, "File of checksums to verify the model with.", status=REFUSED, tier="T3"
    )
    custom_weight_loader: list[str] | None = flag(
        None, "Import paths of weight loaders for updates.", status=REFUSED, tier="T3"
    )
    weight_loader_disable_mmap: bool = flag(
        False, "Read weight files instead of mapping them.", tier="T2"
    )
    decrypted_config_file: str | None = flag(
        None, "Decrypted config of the model.", status=IGNORED, tier="T4"
    )
    decrypted_draft_config_file: str | None = flag(
        None, "Decrypted config of the draft model.", status=IGNORED, tier="T4"
    )
    remote_instance_weight_loader_seed_instance_ip: str | None = flag(
        None, "Address of the instance to load weights from.", status=REFUSED, tier="T3"
    )
    remote_instance_weight_loader_seed_instance_service_port: int | None = flag(
        None, "Port of that instance.", status=REFUSED, tier="T3"
    )
    remote_instance_weight_loader_send_weights_group_ports: list[int] | None = flag(
        None, "Ports of the group that sends the weights.", status=REFUSED, tier="T3"
    )
    remote_instance_weight_loader_backend: str = flag(
        "nccl",
        "Transport of the weights.",
        status=REFUSED,
        tier="T3",
        choices=("nccl", "transfer_engine"),
    )
    remote_instance_weight_loader_start_seed_via_transfer_engine: bool = flag(
        False, "Offer this instance's weights to others.", status=REFUSED, tier="T3"
    )
    checkpoint_engine_wait_weights_before_ready: bool = flag(
        False, "Wait for weights from a checkpoint engine.", status=REFUSED, tier="T3"
    )
    rl_quant_profile: str | None = flag(
        None, "Profile of the flash_rl load format.", status=IGNORED, tier="T4"
    )
