"""The keys of `adapter_config.json`: what is served, what is of no account, what values mean."""

from __future__ import annotations

from weft_adapters.own_tokens import CONFIG_KEY as OWN_TOKENS_KEY

# do not change what the adapter computes: training-time, bookkeeping, or told by the tensors
HARMLESS = frozenset(
    {
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "peft_version",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",
        "runtime_config",
        "auto_mapping",
    }
)
# names of initialisations after which the saved factors are plain LoRA on the base as it was
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# PEFT takes what these begin with out of the base's weights, then and whenever it loads the adapter
CHANGE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# whose biases were trained: nobody's, those of the adapted modules, those of all
BIASES = ("none", "lora_only", "all")
SERVED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        OWN_TOKENS_KEY,
    }
)
