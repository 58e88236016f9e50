"""One model of every module of timm: `pytest -m sweep` decomposes each and prints a table (kept in docs/coverage.md).

Random weights, two random images, float32. Every row is written to a file as soon as it is known; with `UNWEAVE_SWEEP`
naming that file, families that it holds are not measured again. Under pytest every signature is checked at run time,
and it takes hours; `UNWEAVE_SWEEP=rows.json python tests/test_sweep.py` measures the same rows in a quarter of the
time, for pytest to judge.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import unweave
from unweave.components import KINDS
from unweave.errors import UnweaveError
from unweave.models import opened

MODELS = {
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

SIZES = {
    "deepseek_vit": 224,
    "gemma4_vit": 256,
    "hieradet_sam2": 448,
    "mobilenetv5": 256,
    "qwen3_vit": 256,
    "vision_transformer_sam": 512,
}
"""Smaller images than the model's own, where those would cost minutes."""


def names(text: str) -> list[str]:
    return text.split()


FULLY_RESOLVED = frozenset(
    names(
        """
        beit cait convit convnext davit deepseek_vit deit efficientformer eva focalnet gcvit hiera hieradet_sam2
        iformer inception_next mambaout maxxvit metaformer mlp_mixer mvitv2 naflexvit nest nextvit pit pvt_v2
        qwen3_vit repvit sequencer starnet swiftformer swin_transformer swin_transformer_v2 swin_transformer_v2_cr
        twins visformer vision_transformer vision_transformer_hybrid vision_transformer_relpos vision_transformer_sam
        vitamin volo xcit
        """
    )
)
"""Families of which every attention layer is resolved and nothing is lumped."""


def reasons(*groups: tuple[str, str]) -> dict[str, str]:
    return {family: reason for families, reason in groups for family in names(families)}


REASONS = reasons(
    (
        "byoanet dla regnet res2net resnest resnet senet sknet tresnet",
        "The activation after the last residual sum acts on the trunk itself.",
    ),
    (
        "resnetv2 nfnet nasnet pnasnet xception_aligned",
        "The trunk ends in an activation before it is pooled.",
    ),
    (
        "dpn",
        "The blocks' output is half residual sum, half dense concatenation, and ends in an activation.",
    ),
    (
        "cpubone efficientnet efficientvit_mit fastvit hgnet hrnet inception_resnet_v2 lowformer mobilevit rexnet "
        "xception",
        "A convolution with an activation follows the last residual sum, before pooling.",
    ),
    (
        "fasternet ghostnet hardcorenas lcnetv2 mobilenetv3 repghost",
        "The representation is taken after a hidden layer with an activation that follows the pooling.",
    ),
    (
        "cspnet cspnext",
        "Every stage ends in a concatenation of two streams, a convolution and an activation.",
    ),
    (
        "mobilenetv5",
        "The maps of several stages are fused by an MLP before pooling.",
    ),
    (
        "byobnet inception_v3 inception_v4 selecsls vgg",
        "There is no residual stream.",
    ),
    (
        "densenet rdnet vovnet",
        "Dense concatenation instead of a residual stream.",
    ),
    (
        "convmixer",
        "An activation follows every residual sum; only the last block lies above the last of them.",
    ),
    (
        "crossvit",
        "Between its two branches the class tokens pass an MLP that is not residual.",
    ),
    (
        "coat",
        "Its parallel blocks add to each scale what the attention of other scales computes: there is no single trunk.",
    ),
    (
        "levit",
        "An activation lies between each attention and its projection, and on the trunk at each downsampling.",
    ),
    (
        "efficientvit_msra shvit",
        "An activation lies between each attention and its projection, and on the trunk where stages meet.",
    ),
    (
        "efficientformer_v2",
        "An activation lies between each attention and its projection.",
    ),
    (
        "gemma4_vit",
        "The projection after each attention clamps what it reads.",
    ),
    (
        "efficientvim",
        "Activations lie on the trunk between stages, and between the hidden state and its projection.",
    ),
    (
        "edgenext",
        "Each attention lies inside a block's branch, before the activation of its MLP.",
    ),
    (
        "csatv2",
        "Attention that only makes a gate is held with it; the transformer blocks are resolved.",
    ),
    (
        "tiny_vit",
        "Activations lie on the trunk at each downsampling; the last stage is resolved.",
    ),
    (
        "tnt",
        "The inner transformer's tokens reach the class token only through the outer attention of their block.",
    ),
)
"""Why a family is not fully resolved, one sentence each."""

FAILURES: dict[str, str] = {}
"""Families that stop with an error, and its name."""

BOUNDS = {"float32": 1e-5, "float64": 1e-10}

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("default")]


class Rows:
    """The rows known so far, on disk after each."""

    def __init__(self) -> None:
        given = os.environ.get("UNWEAVE_SWEEP")
        self.file = Path(given or Path(__file__).parents[1] / ".sweep.json")
        resume = given is not None and self.file.exists()
        self.known: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if resume else {}

    def of(self, family: str) -> dict[str, Any]:
        if family not in self.known:
            self.known[family] = measured(family)
            fresh = self.file.with_name(self.file.name + ".new")
            fresh.write_text(json.dumps(self.known, indent=1))
            fresh.replace(self.file)
        return self.known[family]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows()


def measured(family: str) -> dict[str, Any]:
    """A row of the table. An error is part of the row, so that the others are measured all the same."""
    row: dict[str, Any] = {"family": family, "model": MODELS[family]}
    try:
        row |= decomposed(family, torch.float32)
        if not row["error"] <= BOUNDS["float32"]:
            row |= decomposed(family, torch.float64) | {"float32": row["error"]}
    except Exception as error:
        row |= {"failure": f"{type(error).__name__}: {error}", "named": isinstance(error, UnweaveError)}
    gc.collect()
    return row


def decomposed(family: str, dtype: torch.dtype) -> dict[str, Any]:
    loading = unweave.Loading(f"timm/{MODELS[family]}", random_weights=True, image_size=SIZES.get(family))
    model = opened(loading, dtype=str(dtype).removeprefix("torch."))
    images = torch.randn((2, *model.input_size), generator=torch.Generator().manual_seed(1)).to(dtype)
    start = time.perf_counter()
    plan = unweave.plan(model)
    seconds = time.perf_counter() - start
    result = plan.run(images, tolerance=float("inf"))
    lumped = [place for place, component in enumerate(plan.components) if component.kind == "lumped"]
    share = result.values[:, lumped].sum(1).norm(dim=-1) / result.representation.norm(dim=-1)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "size": model.input_size[1],
        "kinds": dict(Counter(component.kind for component in plan.components)),
        "attention": plan.coverage.attention_layers,
        "resolved": plan.coverage.resolved,
        "unresolved": list(plan.coverage.unresolved),
        "lumps": [f"{lump.operation} in {lump.module or 'the model'}: {lump.reason}" for lump in plan.lumps],
        "error": float(result.error.max()),
        "share": float(share.mean()),
        "seconds": seconds,
    }


@pytest.mark.parametrize("name", MODELS)
def test_family_is_exact_and_as_far_resolved_as_stated(name: str, rows: Rows) -> None:
    row = rows.of(name)
    if "failure" in row:
        assert row["named"], row["failure"]
        assert name in FAILURES, row["failure"]
        return
    assert row["error"] <= BOUNDS[row["dtype"]]
    assert name not in FAILURES
    whole = row["resolved"] == row["attention"] and not row["lumps"]
    assert whole == (name in FULLY_RESOLVED), [*row["unresolved"], *row["lumps"]]


def test_every_family_is_resolved_or_has_a_reason() -> None:
    assert FULLY_RESOLVED | set(REASONS) == set(MODELS)
    assert not FULLY_RESOLVED & set(REASONS)


def test_every_module_of_timm_has_a_row() -> None:
    import timm

    assert set(timm.list_modules()) <= set(MODELS)


def test_print_the_table(rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n\n" + table([rows.known[family] for family in MODELS if family in rows.known]))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm"))
    ran = [row for row in rows if "failure" not in row]
    whole = [row for row in ran if row["family"] in FULLY_RESOLVED]
    lines = [
        f"{len(rows)} families of timm; {len(ran)} decomposed, {len(whole)} of them fully resolved ({versions}).",
        "",
        "| family | model | components | attention | error | lumped | plan | what is not resolved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(line(row) for row in rows)])


def line(row: dict[str, Any]) -> str:
    cells = [row["family"], row["model"]]
    if "failure" in row:
        return f"| {' | '.join([*cells, '', '', '', '', '', cell(row['failure'].splitlines()[0])])} |"
    if row["family"] in SIZES:
        cells[1] += f" at {row['size']} px"
    error = f"{row['error']:.0e}"
    if row["dtype"] != "float32":
        error += f" ({row['dtype']}; {row['float32']:.0e} in float32)"
    found = [*row["lumps"], *row["unresolved"]]
    reasons = [
        REASONS.get(row["family"], ""),
        found[0] if found else "",
        f"({len(found) - 1} more)" if found[1:] else "",
    ]
    cells += [
        ", ".join(f"{row['kinds'][kind]} {kind}" for kind in KINDS if kind in row["kinds"]),
        f"{row['resolved']}/{row['attention']}",
        error,
        f"{row['share']:.0%}" if "lumped" in row["kinds"] else "",
        f"{row['seconds']:.0f} s",
        cell(" ".join(reason for reason in reasons if reason)),
    ]
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    found = Rows()
    for name in MODELS:
        print(line(found.of(name)), flush=True)
