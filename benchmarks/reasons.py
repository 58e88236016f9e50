"""Why models are not resolved to the end, one sentence for each kind."""

from __future__ import annotations

import fnmatch

REASONS: tuple[tuple[str, ...], ...] = (
    (
        "The activation after the last residual sum acts on the trunk itself.",
        "torchvision/*resne[tx]*",
        "torchvision/regnet*",
        "hf/ResNet*",
        "hf/RegNet*",
        "hf/RTDetrResNet*",
        "open_clip/RN*",
        "timm/halonet26t",
        "timm/dla34",
        "timm/regnety_002",
        "timm/res2net50_48w_2s",
        "timm/resnest14d",
        "timm/resnet10t",
        "timm/legacy_seresnet18",
        "timm/skresnet18",
        "timm/tresnet_m",
    ),
    (
        "The trunk ends in an activation before it is pooled.",
        "hf/Bit*",
        "timm/resnetv2_18",
        "timm/nf_regnet_b0",
        "timm/nasnetalarge",
        "timm/pnasnet5large",
        "timm/xception41",
    ),
    (
        "The blocks' output is half residual sum, half dense concatenation, and ends in an activation.",
        "timm/dpn48b",
    ),
    (
        "A convolution with an activation follows the last residual sum, before pooling.",
        "torchvision/efficientnet*",
        "torchvision/mobilenet_v2",
        "torchvision/mnasnet*",
        "hf/EfficientNet*",
        "hf/MobileNetV2*",
        "hf/MobileViTFor*",
        "hf/MobileViTModel",
        "open_clip/MobileCLIP*-S*",
        "timm/fastvit_mci*",
        "timm/cpubone_nano",
        "timm/tinynet_a",
        "timm/efficientvit_b0",
        "timm/fastvit_t12",
        "timm/hgnet_tiny",
        "timm/hrnet_w18_small",
        "timm/inception_resnet_v2",
        "timm/lowformer_b0",
        "timm/mobilevit_xxs",
        "timm/rexnet_100",
        "timm/legacy_xception",
    ),
    (
        "The representation is taken after a hidden layer with an activation that follows the pooling.",
        "timm/fasternet_t0",
        "timm/ghostnet_050",
        "timm/hardcorenas_a",
        "timm/lcnetv2_small",
        "timm/tf_mobilenetv3_large_minimal_100",
        "timm/repghostnet_050",
    ),
    (
        "Every stage ends in a concatenation of two streams, a convolution and an activation.",
        "timm/cs3darknet_s",
        "timm/cspnext_tiny",
    ),
    (
        "The maps of several stages are fused by an MLP before pooling.",
        "timm/mobilenetv5_300m",
    ),
    (
        "There is no residual stream.",
        "torchvision/alexnet",
        "torchvision/vgg*",
        "torchvision/squeezenet*",
        "torchvision/inception_v3",
        "torchvision/googlenet",
        "hf/MobileNetV1*",
        "hf/PPLCNet*",
        "timm/mobileone_s0",
        "timm/inception_v3",
        "timm/inception_v4",
        "timm/selecsls42",
        "timm/vgg11",
    ),
    (
        "Dense concatenation instead of a residual stream.",
        "torchvision/densenet*",
        "timm/densenet121",
        "timm/rdnet_tiny",
        "timm/ese_vovnet19b_slim",
    ),
    (
        "An activation follows every residual sum; only the last block lies above the last of them.",
        "timm/convmixer_1024_20_ks9_p14",
    ),
    (
        "Between its two branches the class tokens pass an MLP that is not residual.",
        "timm/crossvit_tiny_240",
    ),
    (
        "Its parallel blocks add to each scale what the attention of other scales computes: there is no single trunk.",
        "timm/coat_tiny",
    ),
    (
        "An activation lies between each attention and its projection, and on the trunk at each downsampling.",
        "hf/Levit*",
        "timm/levit_128s",
    ),
    (
        "An activation lies between each attention and its projection, and on the trunk where stages meet.",
        "timm/efficientvit_m0",
        "timm/shvit_s1",
    ),
    (
        "An activation lies between each attention and its projection.",
        "timm/efficientformerv2_s0",
    ),
    (
        "The projection after each attention clamps what it reads.",
        "timm/gemma4_vit_167m",
    ),
    (
        "Activations lie on the trunk between stages, and between the hidden state and its projection.",
        "timm/efficientvim_m1",
    ),
    (
        "Each attention lies inside a block's branch, before the activation of its MLP.",
        "timm/edgenext_xx_small",
    ),
    (
        "Attention that only makes a gate is held with it; the transformer blocks are resolved.",
        "timm/csatv2",
    ),
    (
        "Activations lie on the trunk at each downsampling; the last stage is resolved.",
        "timm/tiny_vit_5m_224",
    ),
    (
        "The inner transformer's tokens reach the class token only through the outer attention of their block.",
        "timm/tnt_s_patch16_224",
    ),
    (
        "What the language model reads is behind a projector with an activation; `--representation last_hidden_state` "
        "reads the tower itself.",
        "hf/Llava*Generation",
        "hf/InternVL*Generation",
        "hf/Qwen*VLForConditionalGeneration",
        "hf/Qwen*VLModel",
    ),
)
"""A sentence, and patterns of the ids that it holds for."""


def reason(id: str) -> str:
    """Why a model is not resolved to the end; empty where there is no reason."""
    return next((told for told, *known in REASONS if any(fnmatch.fnmatchcase(id, own) for own in known)), "")
