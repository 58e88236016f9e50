"""The models that the README names, at full size: `pytest -m sweep tests/test_named.py` prints a table.

Random weights, two random images, float32: the sum is exact, and every head of every attention layer is a component,
or a class attention or attention pooling is passed through. It takes some minutes.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import unweave

NAMED = {
    # id: attention layers, their heads, layers that are passed through
    "timm/deit_base_patch16_224": (12, 144, 0),
    "timm/deit_base_distilled_patch16_224": (12, 144, 0),
    "timm/vit_base_patch16_224.dino": (12, 144, 0),
    "timm/vit_base_patch14_dinov2": (12, 144, 0),
    "timm/vit_base_patch14_reg4_dinov2": (12, 144, 0),
    "open_clip/ViT-B-16/laion2b_s34b_b88k": (12, 144, 0),
    "timm/vit_base_patch16_siglip_224": (13, 144, 1),
    "timm/swin_base_patch4_window7_224": (24, 2 * 4 + 2 * 8 + 18 * 16 + 2 * 32, 0),
    "timm/swinv2_base_window8_256": (24, 2 * 4 + 2 * 8 + 18 * 16 + 2 * 32, 0),
    "timm/maxvit_small_tf_224": (22, 2 * (2 * 3 + 2 * 6 + 5 * 12 + 2 * 24), 0),
    "timm/eva02_base_patch14_224": (12, 144, 0),
    "timm/beit_base_patch16_224": (12, 144, 0),
    "timm/cait_s24_224": (26, 24 * 8 + 2 * 8, 2),
    "timm/pvt_v2_b2": (16, 3 * 1 + 4 * 2 + 6 * 5 + 3 * 8, 0),
    "hf/Dinov2Model": (12, 144, 0),
    "hf/ViTModel": (12, 144, 0),
    "hf/CLIPVisionModelWithProjection": (12, 144, 0),
    "hf/SiglipVisionModel": (13, 144, 1),
    "hf/SwinModel": (12, 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24, 0),
    "torchvision/vit_b_16": (12, 144, 0),
    "torchvision/swin_t": (12, 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24, 0),
    "torchvision/swin_v2_t": (12, 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24, 0),
    "torchvision/maxvit_t": (22, 2 * (2 * 2 + 2 * 4 + 5 * 8 + 2 * 16), 0),
}

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("default")]
lines: list[str] = []


def loaded(name: str, folder: Path) -> unweave.Model:
    """The model; one of transformers from a folder that holds its class's default configuration."""
    library, _, stem = name.partition("/")
    if library == "hf":
        import transformers

        config = getattr(transformers, stem).config_class(architectures=[stem])
        config.save_pretrained(folder)
        return unweave.load_model(f"hf/{folder}", random_weights=True)
    return unweave.load_model(name, random_weights=True)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_exact_and_fully_resolved(name: str, tmp_path: Path) -> None:
    layers, heads, passed = NAMED[name]
    model = loaded(name, tmp_path)
    plan = unweave.plan(model)
    result = plan.run(torch.randn((2, *model.input_size), generator=torch.Generator().manual_seed(1)))
    error, found = float(result.error.max()), sum(part.kind == "head" for part in plan.components)
    lines.append(f"| {name} | {len(plan.components)} | {found} | {layers} | {passed} | {error:.0e} |")
    gc.collect()
    assert (plan.coverage.attention_layers, plan.coverage.resolved) == (layers, layers)
    assert (found, len(plan.coverage.passed)) == (heads, passed)
    assert not plan.lumps
    assert error <= 1e-5


def test_print_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n\n| model | components | heads | attention layers | passed through | error |")
        print("\n".join(["|---|--:|--:|--:|--:|--:|", *lines]))
