"""Tiny models of transformers in temporary folders, as `save_pretrained` writes them."""

import json

import torch
from safetensors.torch import load_file, save_file

from unweave.models.weights import randomise

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CLIP = {"model_type": "clip_vision_model", **VIT}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **VIT}
SIGLIP2 = {
    "model_type": "siglip2_vision_model",
    "vision_use_head": False,
    "num_patches": 16,
    **{name: value for name, value in VIT.items() if name != "image_size"},
}
PIXTRAL = {"model_type": "pixtral", "head_dim": 16, **VIT}
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 8,
}
QWEN = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
WIDE = {**QWEN, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "mlp_dim": 64,
    "window_size": 4,
    "global_attn_indexes": [1],
}
CLIP_FRAMES = {**VIT, "num_frames": 4}


def language(kind="llama"):
    return {"model_type": kind, **LANGUAGE}


FAMILIES = {
    "LLaVA": ("LlavaForConditionalGeneration", "LlavaConfig", {"vision_config": CLIP, "text_config": language()}),
    "LLaVA with Pixtral": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "vision_config": PIXTRAL,
            "text_config": language(),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
    ),
    "LLaVA-NeXT": (
        "LlavaNextForConditionalGeneration",
        "LlavaNextConfig",
        {"vision_config": CLIP, "text_config": language(), "image_grid_pinpoints": [[32, 64], [64, 32]]},
    ),
    "LLaVA-OneVision": (
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        {"vision_config": SIGLIP, "text_config": language("qwen2"), "image_grid_pinpoints": [[32, 64], [64, 32]]},
    ),
    "PaliGemma": (
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {"vision_config": SIGLIP, "text_config": language("gemma"), "projection_dim": 32},
    ),
    "Gemma 3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"vision_config": SIGLIP, "text_config": language("gemma3_text"), "mm_tokens_per_image": 4},
    ),
    "InternVL": (
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        {
            "vision_config": {"model_type": "internvl_vision", **VIT, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": language("qwen2"),
        },
    ),
    "Idefics2": (
        "Idefics2ForConditionalGeneration",
        "Idefics2Config",
        {
            "vision_config": VIT,
            "text_config": language("mistral"),
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_n_latents": 4,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            },
        },
    ),
    "Idefics3": (
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        {"vision_config": VIT, "text_config": language(), "scale_factor": 2},
    ),
    "SmolVLM": (
        "SmolVLMForConditionalGeneration",
        "SmolVLMConfig",
        {"vision_config": VIT, "text_config": language(), "scale_factor": 2},
    ),
    "PerceptionLM": (
        "PerceptionLMForConditionalGeneration",
        "PerceptionLMConfig",
        {
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_tiny_patch16_384",
                "model_args": {
                    "embed_dim": 48,
                    "depth": 2,
                    "num_heads": 2,
                    "img_size": [32, 32],
                    "patch_size": 8,
                    "global_pool": "",
                    "use_post_transformer_norm": False,
                    "init_values": 0.1,
                    "ref_feat_shape": [4, 4],
                },
                "do_pooling": False,
            },
            "text_config": language(),
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": True,
        },
    ),
    "Qwen2-VL": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {"vision_config": {**QWEN, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, "text_config": LANGUAGE},
    ),
    "Qwen2.5-VL": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {"vision_config": {**WIDE, "window_size": 16, "fullatt_block_indexes": [1]}, "text_config": LANGUAGE},
    ),
    "Qwen3-VL": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            "vision_config": {**WIDE, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
            "text_config": LANGUAGE,
        },
    ),
    "Qwen3-VL, experts": (
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {
            "vision_config": {**WIDE, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
            "text_config": LANGUAGE | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        },
    ),
    "Mistral 3": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {"vision_config": PIXTRAL, "text_config": language("mistral"), "vision_feature_layer": -1},
    ),
    "Aya Vision": (
        "AyaVisionForConditionalGeneration",
        "AyaVisionConfig",
        {"vision_config": SIGLIP, "text_config": language("cohere2"), "adapter_layer_norm_eps": 1e-6},
    ),
}
"""Models that answer about images: the class, the configuration's class, and its options."""


def saved(folder, name, config, options, **saving):
    """A model with live weights, saved."""
    import transformers

    torch.manual_seed(0)
    module = randomise(getattr(transformers, name)(getattr(transformers, config)(**options))).eval()
    module.save_pretrained(folder, **saving)
    return module


def rewritten(folder, change):
    """Changes the names and tensors of a folder's weights."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def reconfigured(folder, **options):
    """Changes a folder's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
