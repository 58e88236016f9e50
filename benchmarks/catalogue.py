"""Which models the table of models holds."""

from __future__ import annotations

from functools import cache
from typing import Any

FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet26t",
    "byobnet": "mobileone_s0",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_1024_20_ks9_p14",
    "convnext": "convnext_atto",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_distilled_patch16_224",
    "densenet": "densenet121",
    "dla": "dla34",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "tinynet_a",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t12",
    "focalnet": "focalnet_tiny_lrf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_s",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "caformer_s18",
    "mlp_mixer": "gmlp_s16_224",
    "mobilenetv3": "tf_mobilenetv3_large_minimal_100",
    "mobilenetv5": "mobilenetv5_300m",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_siglip",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_xs_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnety_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1_0",
    "res2net": "res2net50_48w_2s",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p8_224",
}
"""A small model of each module of timm."""

IMAGE_SIZES = {
    "timm/deepseek_vit_412m": 224,
    "timm/gemma4_vit_167m": 256,
    "timm/sam2_hiera_tiny": 448,
    "timm/mobilenetv5_300m": 256,
    "timm/qwen3_vit_88m": 256,
    "timm/samvit_base_patch16": 512,
}
"""Smaller images than the model's own, where those would cost minutes."""


_DINOV2 = {"architectures": ["Dinov2Model"], "model_type": "dinov2", "image_size": 518, "patch_size": 14}

PUBLISHED: dict[str, dict[str, Any]] = {
    "timm/hf-hub:MahmoodLab/UNI": {
        "architecture": "vit_large_patch16_224",
        "num_classes": 0,
        "model_args": {"init_values": 1e-5, "dynamic_img_size": True},
    },
    "timm/hf-hub:bioptimus/H-optimus-0": {
        "architecture": "vit_giant_patch14_reg4_dinov2",
        "num_classes": 0,
        "model_args": {"img_size": 224, "init_values": 1e-5},
    },
    "timm/hf-hub:prov-gigapath/prov-gigapath": {
        "architecture": "vit_giant_patch14_dinov2",
        "num_classes": 0,
        "model_args": {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334},
    },
    "timm/hf-hub:paige-ai/Virchow2": {
        "architecture": "vit_huge_patch14_224",
        "num_classes": 0,
        "model_args": {
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "reg_tokens": 4,
            "dynamic_img_size": True,
            "mlp_layer": "swiglupacked",
            "act_layer": "silu",
        },
    },
    "hf/owkin/phikon": {"architectures": ["ViTModel"], "model_type": "vit"},
    "hf/owkin/phikon-v2": {
        **_DINOV2,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    "hf/microsoft/rad-dino": _DINOV2,
    "hf/google/medsiglip-448": {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "image_size": 448,
            "patch_size": 14,
        },
    },
    "open_clip/hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {},
    },
}
"""Configurations of models on the hub, as their authors publish them."""

CONFIGURED: dict[str, dict[str, Any]] = {
    "Gemma3ForConditionalGeneration": {"vision_config": {"model_type": "siglip_vision_model", "image_size": 896}},
    "Idefics3ForConditionalGeneration": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "PerceptionLMForConditionalGeneration": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {
                "depth": 2,
                "img_size": [448, 448],
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [32, 32],
                "embed_dim": 1024,
            },
            "do_pooling": False,
        },
        "projector_pooling_ratio": 2,
        "vision_use_cls_token": True,
    },
    "PerceiverForImageClassificationFourier": {"num_cross_attention_heads": 1},
    "PerceiverForImageClassificationConvProcessing": {"num_cross_attention_heads": 1},
}
"""What models on the hub set where the defaults of a class do not go together."""

NEWEST: dict[str, tuple[str, ...]] = {
    "DINOv3 ViT": (
        "timm/vit_small_patch16_dinov3",
        "timm/vit_base_patch16_dinov3",
        "timm/vit_large_patch16_dinov3",
        "timm/vit_7b_patch16_dinov3",
        "hf/DINOv3ViTModel",
        "hf/DINOv3ViTBackbone",
    ),
    "DINOv3 ConvNeXt": (
        "timm/convnext_tiny.dinov3_lvd1689m",
        "timm/convnext_base.dinov3_lvd1689m",
        "hf/DINOv3ConvNextModel",
    ),
    "SigLIP 2": (
        "open_clip/ViT-B-16-SigLIP2",
        "open_clip/ViT-SO400M-14-SigLIP2",
        "timm/vit_base_patch16_siglip_gap_224.v2_webli",
        "timm/naflexvit_base_patch16_siglip",
        "hf/Siglip2Model",
        "hf/Siglip2VisionModel",
    ),
    "PE-Core": (
        "timm/vit_pe_core_tiny_patch16_384",
        "timm/vit_pe_core_base_patch16_224",
        "timm/vit_pe_core_large_patch14_336",
        "open_clip/PE-Core-B-16",
        "open_clip/PE-Core-L-14-336",
    ),
    "PE-Spatial": ("timm/vit_pe_spatial_tiny_patch16_512", "timm/vit_pe_spatial_base_patch16_512"),
    "AIMv2": ("timm/aimv2_large_patch14_224", "hf/Aimv2Model", "hf/Aimv2VisionModel"),
    "RADIO": (
        "timm/vit_base_patch16_radio_v3",
        "timm/vit_so400m_patch16_radio_v4",
        "timm/naflexvit_base_patch16_radio_v3",
        "hf/RadioModel",
    ),
    "TIPSv2": ("timm/vit_base_patch14_reg1_tipsv2", "hf/Tipsv2Model", "hf/Tipsv2VisionModel"),
    "MetaCLIP 2": (
        "open_clip/ViT-L-14-worldwide",
        "open_clip/ViT-H-14-worldwide-quickgelu",
        "timm/vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide",
        "hf/MetaClip2Model",
        "hf/MetaClip2ForImageClassification",
    ),
    "MobileCLIP2": (
        "open_clip/MobileCLIP2-S0",
        "open_clip/MobileCLIP2-S2",
        "open_clip/MobileCLIP2-S4",
        "open_clip/MobileCLIP2-B",
        "open_clip/MobileCLIP2-L-14",
        "timm/fastvit_mci0",
        "timm/fastvit_mci3",
    ),
    "I-JEPA": ("timm/vit_huge_patch14_gap_224.in1k_ijepa", "hf/IJepaModel"),
    "V-JEPA 2": ("hf/VJEPA2Model", "hf/VJEPA2ForVideoClassification"),
    "SAM 2": ("timm/sam2_hiera_tiny", "hf/Sam2VisionModel", "hf/Sam2HieraDetModel", "hf/Sam2Model"),
    "SAM 3": ("hf/Sam3ViTModel", "hf/Sam3VisionModel", "hf/Sam3Model"),
    "EUPE": (
        "timm/vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
        "timm/vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
        "timm/convnext_tiny.eupe_lvd1689m",
    ),
    "Pathology": (
        "timm/hf-hub:MahmoodLab/UNI",
        "timm/hf-hub:bioptimus/H-optimus-0",
        "timm/hf-hub:prov-gigapath/prov-gigapath",
        "timm/hf-hub:paige-ai/Virchow2",
        "hf/owkin/phikon",
        "hf/owkin/phikon-v2",
    ),
    "Radiology": (
        "hf/microsoft/rad-dino",
        "hf/google/medsiglip-448",
        "open_clip/hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    ),
    "LLaVA": (
        "hf/LlavaForConditionalGeneration",
        "hf/LlavaForConditionalGeneration --representation last_hidden_state",
        "hf/LlavaNextForConditionalGeneration",
        "hf/LlavaNextForConditionalGeneration --representation last_hidden_state",
    ),
    "LLaVA-OneVision": (
        "hf/LlavaOnevisionForConditionalGeneration",
        "hf/LlavaOnevisionForConditionalGeneration --representation last_hidden_state",
    ),
    "PaliGemma": ("hf/PaliGemmaForConditionalGeneration",),
    "Gemma 3": ("hf/Gemma3ForConditionalGeneration",),
    "InternVL": (
        "hf/InternVLForConditionalGeneration",
        "hf/InternVLForConditionalGeneration --representation last_hidden_state",
        "hf/InternVLVisionModel",
    ),
    "Idefics3": ("hf/Idefics3ForConditionalGeneration",),
    "PerceptionLM": ("hf/PerceptionLMForConditionalGeneration",),
    "Qwen-VL": (
        "hf/Qwen2VLForConditionalGeneration",
        "hf/Qwen2VLForConditionalGeneration --representation last_hidden_state",
        "hf/Qwen2_5_VLForConditionalGeneration",
        "hf/Qwen2_5_VLForConditionalGeneration --representation last_hidden_state",
        "hf/Qwen3VLForConditionalGeneration",
        "hf/Qwen3VLForConditionalGeneration --representation last_hidden_state",
    ),
}
"""What is asked for in 2026, by the names that it goes by."""

NAMED = (
    "timm/deit_base_patch16_224",
    "timm/deit_base_distilled_patch16_224",
    "timm/vit_base_patch16_224.dino",
    "timm/vit_base_patch14_dinov2",
    "timm/vit_base_patch14_reg4_dinov2",
    "timm/vit_base_patch16_siglip_224",
    "timm/swin_base_patch4_window7_224",
    "timm/swinv2_base_window8_256",
    "timm/maxvit_small_tf_224",
    "timm/eva02_base_patch14_224",
    "timm/cait_s24_224",
    "timm/pvt_v2_b2",
)
"""Models that the README names, at full size."""

TABLES = (
    "IMAGE_CLASSIFICATION",
    "BACKBONE",
    "IMAGE_TEXT_TO_TEXT",
    "VIDEO_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "IMAGE",
    "MASK_GENERATION",
    "MASKED_IMAGE_MODELING",
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "VISUAL_QUESTION_ANSWERING",
)
"""transformers' own tables of vision classes (`modeling_auto`)."""


def catalogue() -> dict[str, str]:
    """What is measured: ids, and the group that each is listed in, in the order of measuring."""
    import open_clip
    import torchvision

    groups: dict[str, str] = {}
    for family, ids in NEWEST.items():
        groups |= {id: family for id in ids if id not in groups}
    listed = {
        "transformers": [f"hf/{name}" for name in classes()],
        "torchvision": [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)],
        "open_clip": [f"open_clip/{name}" for name in open_clip.list_models()],
        "named in the README": list(NAMED),
        "timm": [f"timm/{name}" for name in FAMILIES.values()],
    }
    for group, ids in listed.items():
        groups |= {id: group for id in ids if id not in groups}
    return groups


@cache
def classes() -> dict[str, Any]:
    """Vision classes of transformers by name, each with the class of its configuration."""
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, Any] = {}
    tables = [getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in TABLES]
    for table in (*tables, auto.MODEL_MAPPING_NAMES):
        for kind, named in table.items():
            for name in (named,) if isinstance(named, str) else named:
                if name in found or kind not in CONFIG_MAPPING:
                    continue
                known = getattr(transformers, name, None)
                if known is not None and (table is not auto.MODEL_MAPPING_NAMES or _sees(known)):
                    found[name] = CONFIG_MAPPING[kind]
    return found


def _sees(known: Any) -> bool:
    """Whether a class takes images; one that lacks a package of another kind of input does not."""
    try:
        return str(known.main_input_name).startswith("pixel_values") or hasattr(known, "get_image_features")
    except (AttributeError, ImportError):
        return False
