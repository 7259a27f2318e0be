"""Small configurations of transformers' text architectures, and random checkpoints built from them.

A fresh model is a poor test: its logits are all but equal, its biases are zero, and its layers add little to the
residual stream, so that a wrong mask hardly shows. Weights are therefore scaled up, biases and norms are disturbed, and
the output head is scaled until a distribution has half the entropy of a uniform one. Every kind of randomness that a
configuration offers for training (dropout, layer drop, router jitter, input noise) is switched on.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from onepolicy.tiny import character_tokenizer

ALPHABET = "abcdefghijklmnopqrst0123456789 ?"
DEVIATION, SMALL = 0.12, 0.05  # standard deviation given to weight matrices that have less than SMALL
GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
ENTROPY = 0.5  # of the next token, as a fraction of the uniform distribution's

# Taken over by each architecture as far as its configuration has a field of that name.
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
NOISE: dict[str, Any] = {
    "attention_dropout": 0.2,
    "attention_probs_dropout_prob": 0.2,
    "activation_dropout": 0.2,
    "hidden_dropout": 0.2,
    "hidden_dropout_prob": 0.2,
    "dropout": 0.2,
    "attn_pdrop": 0.2,
    "resid_pdrop": 0.2,
    "embd_pdrop": 0.2,
    "emb_pdrop": 0.2,
    "resid_dropout": 0.2,
    "embed_dropout": 0.2,
    "embedding_dropout": 0.2,
    "mlp_dropout": 0.2,
    "layerdrop": 0.3,
    "router_jitter_noise": 0.2,
    "input_jitter_noise": 0.2,
}
LOCAL_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
GROUPED = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
}
DELTA_NET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 3,
}
ROPE = {"rope_theta": 10000.0}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **ROPE, **options}}


# Row of the table → what differs from COMMON. The first word is transformers' model_type.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama attention and mlp bias": {"attention_bias": True, "mlp_bias": True},
    "llama rope llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama rope linear": rope("linear", factor=4.0),
    "llama rope yarn": rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama rope dynamic": {"max_position_embeddings": 48, **rope("dynamic", factor=4.0)},
    "llama rope longrope": rope(
        "longrope", short_factor=[1.0] * 4, long_factor=[1.5, 2.0, 4.0, 8.0], original_max_position_embeddings=32
    ),
    "mistral": {"sliding_window": None},
    "mistral sliding window": {"sliding_window": 8},
    "ministral": LOCAL_GLOBAL,
    "ministral3": {},
    "mixtral": {"sliding_window": None},
    "mixtral sliding window": {"sliding_window": 8},
    "qwen2": {},
    "qwen2 sliding window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen2 padded vocabulary": {"vocab_size": 44},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": DELTA_NET,
    "qwen3_5_text": DELTA_NET,
    "qwen3_5_moe_text": DELTA_NET,
    "qwen3_5 with images": {
        "text_config": DELTA_NET,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
    },
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 10.0, "attn_logit_softcapping": 10.0, **LOCAL_GLOBAL},
    "gemma3_text": LOCAL_GLOBAL,
    "gemma3_text soft cap": {"final_logit_softcapping": 10.0, "attn_logit_softcapping": 10.0, **LOCAL_GLOBAL},
    "gemma3 with images": {"text_config": LOCAL_GLOBAL, "vision_config": VISION},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 38,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "final_logit_softcapping": 10.0,
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 38,
        "final_logit_softcapping": 10.0,
        **LOCAL_GLOBAL,
    },
    "vaultgemma": {"final_logit_softcapping": 10.0, "attn_logit_softcapping": 10.0, **LOCAL_GLOBAL},
    "phi": {},
    "phi3": {"original_max_position_embeddings": 256},
    "phi3 sliding window": {"original_max_position_embeddings": 256, "sliding_window": 8},
    "phi3 longrope": {
        "original_max_position_embeddings": 32,
        **rope(
            "longrope", short_factor=[1.0] * 4, long_factor=[1.5, 2.0, 4.0, 8.0], original_max_position_embeddings=32
        ),
    },
    "phimoe": {"lm_head_bias": True, "attention_bias": True},
    "phimoe longrope": {
        **rope(
            "longrope",
            short_factor=[1.0] * 4,
            long_factor=[1.5, 2.0, 4.0, 8.0],
            original_max_position_embeddings=32,
            short_mscale=1.1,
            long_mscale=1.3,
        ),
    },
    "granite": {
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
    },
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoeshared": {"logits_scaling": 4.0},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 16,
        "logits_scaling": 4.0,
        **MAMBA2,
    },
    "granitemoehybrid attention only": {
        "layer_types": ["attention", "attention"],
        "shared_intermediate_size": 16,
        **MAMBA2,
    },
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.25, **LOCAL_GLOBAL},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": LOCAL_GLOBAL,
    "olmo_hybrid": {k: v for k, v in DELTA_NET.items() if k != "linear_num_key_heads"} | {"linear_num_key_heads": 4},
    "olmoe": {},
    "flex_olmo": {},
    "deepseek_v2": {**LATENT, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1},
    "deepseek_v3": {**LATENT, **GROUPED, "first_k_dense_replace": 1},
    "deepseek_v3 yarn": {
        **LATENT,
        **GROUPED,
        "first_k_dense_replace": 1,
        **rope("yarn", factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0),
    },
    "deepseek_v32": {
        **LATENT,
        **GROUPED,
        "first_k_dense_replace": 1,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 16,  # with fewer, scores that are all 0 make ties
    },
    "glm": {"attention_bias": True},
    "glm4": {},
    "glm4_moe": {"first_k_dense_replace": 1, "n_shared_experts": 1, "use_qk_norm": True},
    "glm4_moe_lite": {**LATENT, "n_shared_experts": 1},
    "gpt_oss": LOCAL_GLOBAL,
    "gpt2": {},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {"use_parallel_residual": True},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "num_attention_heads": 4},
    "openai-gpt": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt projected embeddings": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "bloom": {},
    "mpt": {},
    "falcon": {"multi_query": True, "parallel_attn": True},
    "falcon new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon alibi": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA2},
    "falcon_mamba": {"state_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 16},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1], **MAMBA2},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "attention_hidden_size": 64,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "n_mamba_heads": 4,
        "mamba_d_state": 16,
        "chunk_size": 16,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "ssm_state_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 16,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "attention_window_size": 8,
        "block_types": ["recurrent", "recurrent", "attention"],
        "logits_soft_cap": 10.0,
    },
    "rwkv": {"attention_hidden_size": 32, "rescale_every": 1},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "minimax_m2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron": {},
    "stablelm": {"use_qkv_bias": True, "use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": {"sliding_window": 8, "use_bias": True},
    "persimmon": {},
    "exaone4": LOCAL_GLOBAL,
    "ernie4_5": {"use_bias": True},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "smollm3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2},
    "seed_oss": {"attention_bias": True},
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1, **LOCAL_GLOBAL},
    "diffllama": {"attention_dropout": 0.0},
    "helium": {},
    "jetmoe": {"kv_channels": 8},
    "llama4_text": {
        "intermediate_size_mlp": 48,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 16,
        "interleave_moe_layer_step": 2,
    },
    "nanochat": {},
    "xglm": {"ffn_dim": 48},
    "biogpt": {},
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.2},
    },
    "doge": {},
    "longcat_flash": {
        **LATENT,
        "num_layers": 1,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
    },
    "minicpm3": {**LATENT, "dim_model_base": 16},
    "afmoe": {"num_shared_experts": 1, **LOCAL_GLOBAL},
    "cwm": LOCAL_GLOBAL,
    "modernbert-decoder": {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 16},
    "kimi_linear": {
        **LATENT,
        "q_lora_rank": None,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "youtu": LATENT,
    "hyperclovax": {},
    "internlm3": {},
    "xlnet": {"d_head": 8, "d_inner": 48},
}


def configuration(name: str) -> PretrainedConfig:
    """The configuration of one row. Raises ValueError for an option that the architecture does not have."""
    model_type, changes = name.split()[0], dict(ARCHITECTURES[name])
    default = AutoConfig.for_model(model_type)
    if "text_config" in changes:
        changes["text_config"] = _settings(type(default.text_config), changes["text_config"])
        return AutoConfig.for_model(model_type, **changes)
    return AutoConfig.for_model(model_type, **_settings(type(default), changes))


def _settings(kind: type[PretrainedConfig], changes: dict[str, Any]) -> dict[str, Any]:
    """The options of COMMON and NOISE that a configuration has, and `changes`."""
    alias = kind.attribute_map  # two names of one field
    fields = {field.name for field in dataclasses.fields(kind)} | set(alias)
    if unknown := changes.keys() - fields - {"attn_config", "ffn_config"}:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    tokenizer = character_tokenizer(ALPHABET)
    settings = {alias.get(key, key): value for key, value in (COMMON | NOISE).items() if key in fields}
    settings |= {"vocab_size": len(tokenizer)} | {alias.get(key, key): value for key, value in changes.items()}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    return settings | ends | {"pad_token_id": tokenizer.pad_token_id}


def build(name: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of one row whose logits, biases and states are of some size, and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configuration(name)).float().eval()
        disturb(model)
    return model, character_tokenizer(ALPHABET)


@torch.no_grad()
def disturb(model: PreTrainedModel) -> None:
    """Scale weights up, move biases, norms and router corrections away from their start, and sharpen the output."""
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif (deviation := parameter.std().item()) < 1e-6:  # some projections start at zero
            parameter.normal_(0, DEVIATION)
        elif deviation < SMALL:
            parameter.mul_(DEVIATION / deviation)
    embedding = model.get_input_embeddings().weight
    empty = embedding.abs().sum(1) == 0  # of the padding token: a hidden state of zeros makes ties, which chance breaks
    embedding[empty] = DEVIATION * torch.randn_like(embedding[empty])
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.add_(0.1 * torch.randn_like(buffer))
    head = model.get_output_embeddings()
    ids_BT = torch.randint(model.config.get_text_config().vocab_size, (2, 24))
    for _ in range(30):
        logprobs_BTV = model(input_ids=ids_BT).logits.log_softmax(-1)
        entropy = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1).mean().item()
        if head is None or entropy < ENTROPY * math.log(logprobs_BTV.shape[-1]):
            break
        head.weight.mul_(1.3)


def store(folder: Path, name: str, seed: int = 0, near: Path | None = None) -> Path:
    """The model of `build` as an ordinary checkpoint; with `near`, that checkpoint moved a little by `seed`."""
    if near is None:
        model, tokenizer = build(name, seed)
    else:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(near), character_tokenizer(ALPHABET)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    model.generation_config = GenerationConfig(**GENERATION, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
