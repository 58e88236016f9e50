"""Tiny random models of every family, each with its parts written down by hand.

The oracle (`oracle.py`) and the plan must agree on these models, so nothing here may come from the code under test:
which modules are branches, how many heads they have, where their activations enter the last linear layer and which
norms lie on the trunk are read off each library's source by a person. Every parameter is randomised well away from
zero, so that no path is dead and a wrong attribution shows: LayerScale, biases, norm weights, tokens, positions,
relative position tables and batch statistics included.

Heads lie head-major in the input of the attention's output projection (`head * width + channel`) in every family below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import timm
import torch
import torchvision
import transformers
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Branch:
    """One branch off the trunk.

    Attributes:
        path: The path of the component, as the model names the branch's module.
        kind: What it is made of.
        source: The module right behind the branch's last nonlinearity: what enters it is the component's activation.
        heads: For attention, how many.
        end: The last module of the branch that has a bias, where that is not `source` (a norm behind the branch).
        weight: Where `source` applies its last projection by a function call, the module that holds its weight.
        axis: The channel axis of what enters `source`.
    """

    path: str
    kind: Literal["attn", "mlp", "conv"]
    source: str
    heads: int = 0
    end: str | None = None
    weight: str | None = None
    axis: int = -1


class _Products(TorchFunctionMode):
    """Remembers the factors of the last product of two stacks of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: tuple[Tensor, Tensor] | None = None

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.einsum):
            factors = arguments[-2:]
            if all(factor.ndim >= 4 for factor in factors):
                self.factors = factors
        return function(*arguments, **(options or {}))


def watched(module: nn.Module, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
    """Any attention: it runs again, torch's kernel written out, and its last product is probabilities by values."""

    def in_the_open(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_, **options
    ) -> Tensor:
        assert not options.get("is_causal") and not options.get("enable_gqa")
        scale = options.get("scale") or query.shape[-1] ** -0.5
        logits = query @ key.transpose(-2, -1) * scale
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return logits.softmax(-1) @ value

    kernel, products = nn.functional.scaled_dot_product_attention, _Products()
    nn.functional.scaled_dot_product_attention = in_the_open
    try:
        with products:
            module(*arguments, **options)
    finally:
        nn.functional.scaled_dot_product_attention = kernel
    assert products.factors is not None, "there is no product of probabilities with values"
    return tuple(factor.flatten(0, -4) for factor in products.factors)


@dataclass(frozen=True)
class Attend:
    """One attention module split by token: what its heads read, recomputed by hand or watched while it runs again.

    `attend(module, *args)` gives probabilities `[row, head, query, key]` and values `[row, head, key, width]`, where a
    row is an image or a window of one.
    """

    attend: Callable[..., tuple[Tensor, Tensor]] = watched
    cells: Callable[[nn.Module, str], Tensor] | None = None
    """For windowed attention: the raster cell of every token, `[window, token]`."""
    mlps: bool = False
    """Whether the MLPs see windows too."""


@dataclass(frozen=True)
class Reading:
    """An attention that the trunk itself passes through (class attention, attention pooling): frozen probabilities.

    Attributes:
        module: The module that takes the trunk's tokens; also the path of the heads that read the class token.
        attend: The attention written out, on what enters `module`.
        values: The module that holds the bias of the values.
        project: The module that takes the heads' output; `module` itself where that is a `nn.MultiheadAttention`.
        heads: How many.
        own: How many leading tokens it reads are the class token itself: they are the branch, the rest is passed on.
        norm: The norm before it, whose bias is one of the branch's, where there is a branch.
    """

    module: str
    attend: Callable[..., tuple[Tensor, Tensor]]
    values: str
    project: str
    heads: int
    own: int = 0
    norm: str = ""


@dataclass(frozen=True)
class Family:
    """A tiny model and its parts.

    Attributes:
        name: Library, family and variant.
        build: Makes the model, untrained, in float32 and eval mode; what it returns maps images to representations.
        size: The side of the square image.
        branches: In execution order.
        norms: Every norm whose statistic is frozen, with the norms behind or inside a branch.
        affine: Linear layers and convolutions on the trunk that have a bias.
        entry: What enters the residual stream: `input:PATH` (what enters a module) or `param:NAME`.
        readings: Attention on the trunk itself.
        tokens: How to split the attention branches further by token.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    branches: tuple[Branch, ...]
    norms: tuple[str, ...]
    entry: tuple[str, ...]
    affine: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    tokens: Attend = Attend()

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 5) -> nn.Module:
        """The readout module, randomised in float32 and then cast, so that every dtype has the same weights."""
        torch.manual_seed(seed)
        module = self.build().eval().requires_grad_(False)
        randomise(module, seed)
        return module.to(dtype)

    def images(self, count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Random images, the same in every dtype: `[count, 3, size, size]`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, self.size, self.size, generator=generator).to(dtype)


class Readout(nn.Module):
    """A model followed by the choice of its representation."""

    def __init__(self, model: nn.Module, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, images: Tensor) -> Tensor:
        """`[image, 3, height, width]` to `[image, dim]`."""
        return self.read(self.model, images)


def core(readout: nn.Module) -> nn.Module:
    """The library's own model inside a readout: module paths are relative to it."""
    return readout.model if isinstance(readout, Readout) else readout


def randomise(module: nn.Module, seed: int) -> None:
    """Random parameters and batch statistics: scales around one, biases and tables well away from zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(value: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(value.shape, generator=generator)

    def signed(value: Tensor, low: float, high: float) -> Tensor:
        sign = torch.where(torch.rand(value.shape, generator=generator) < 0.5, -1.0, 1.0)
        return sign * uniform(value, low, high)

    tables = ("token", "pos", "latent", "probe", "class_embedding", "table")
    for name, value in module.named_parameters():
        leaf = name.lower()
        if leaf.endswith("bias"):
            value.copy_(signed(value, 0.1, 0.5))
        elif value.ndim < 4 and any(word in leaf for word in tables):
            value.copy_(signed(value, 0.2, 1.0))
        elif value.ndim == 1 or max(value.shape) == value.numel():
            value.copy_(uniform(value, 0.5, 1.5))
        else:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(fan_in))
    for name, value in module.named_buffers():
        if name.endswith("running_mean"):
            value.copy_(signed(value, 0.1, 0.5))
        elif name.endswith("running_var"):
            value.copy_(uniform(value, 0.5, 1.5))


# Attention written out, one function per way a library stores it ----------------------------------------------------


def _softmax(query: Tensor, key: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias).softmax(-1)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def timm_vit(module: nn.Module, tokens: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    """timm's `Attention`: one projection for query, key and value, in this order."""
    query, key, value = (_heads(part, module.num_heads) for part in module.qkv(tokens).chunk(3, -1))
    return _softmax(query, key), value


def timm_swin(module: nn.Module, windows: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """timm's `WindowAttention`: rows are windows, image-major; the mask is given per window of an image."""
    query, key, value = (_heads(part, module.num_heads) for part in module.qkv(windows).chunk(3, -1))
    area = windows.shape[1]
    table = module.relative_position_bias_table[module.relative_position_index.flatten()]
    bias = table.unflatten(0, (area, area)).permute(2, 0, 1)[None]
    if mask is not None:
        bias = bias + mask.repeat(windows.shape[0] // mask.shape[0], 1, 1)[:, None]
    return _softmax(query, key, bias), value


def _window_cells(side: int, window: int, shift: int, *, rolled_first: bool) -> Tensor:
    """The raster cell of every token of every window, -1 for padding, of a square of tokens rolled, padded and cut."""
    raster, room = torch.arange(side * side).reshape(side, side), -side % window
    for step in ("roll", "pad") if rolled_first else ("pad", "roll"):
        if step == "roll":
            raster = raster.roll((-shift, -shift), (0, 1))
        else:
            raster = nn.functional.pad(raster, (0, room, 0, room), value=-1)
    windows = len(raster) // window
    return raster.reshape(windows, window, windows, window).transpose(1, 2).reshape(-1, window * window)


def timm_swin_cells(model: nn.Module, path: str) -> Tensor:
    """timm's Swin block rolls its tokens first."""
    block = model.get_submodule(path.removesuffix(".attn"))
    return _window_cells(block.input_resolution[0], block.window_size[0], block.shift_size[0], rolled_first=True)


def torchvision_swin_cells(model: nn.Module, path: str, side: int) -> Tensor:
    """torchvision's pads first, and does not shift a single window."""
    module, side = model.get_submodule(path), side if path.startswith("features.1") else side // 2
    window = module.window_size[0]
    return _window_cells(side, window, module.shift_size[0] if window < side else 0, rolled_first=False)


def hf_swin_cells(model: nn.Module, path: str) -> Tensor:
    """transformers' pads first; its block keeps the window and the shift that it found to fit."""
    block = model.get_submodule(path.removesuffix(".attention"))
    return _window_cells(block.input_resolution[0], block.window_size, block.shift_size, rolled_first=False)


def timm_maxvit(module: nn.Module, windows: Tensor) -> tuple[Tensor, Tensor]:
    """timm's `AttentionCl` as TensorFlow orders it; rows are windows, their tokens on two axes."""
    parts = module.qkv(windows).flatten(1, 2).chunk(3, -1)
    query, key, value = (_heads(part, module.num_heads) for part in parts)
    return _softmax(query, key, module.rel_pos.get_bias()), value


def maxvit_cells(model: nn.Module, path: str) -> Tensor:
    """The raster cell of every token of one partition: blocks are contiguous, the grid takes one cell of each block."""
    side, part = (8 if path.startswith(("stages.0", "blocks.0")) else 4), 2
    raster = torch.arange(side * side)
    if ".attn_block." in path or ".window_attention." in path:
        return raster.reshape(side // part, part, side // part, part).transpose(1, 2).reshape(-1, part * part)
    return raster.reshape(part, side // part, part, side // part).permute(1, 3, 0, 2).reshape(-1, part * part)


def hf_separate(module: nn.Module, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    """transformers: separate projections."""
    heads = hidden_states.shape[-1] // module.head_dim
    query, key, value = (_heads(part(hidden_states), heads) for part in (module.q_proj, module.k_proj, module.v_proj))
    return _softmax(query, key), value


def torch_multihead(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """`torch.nn.MultiheadAttention`, batch first."""
    parts = zip((query, key, value), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
    query, key, value = (_heads(nn.functional.linear(*part), module.num_heads) for part in parts)
    return _softmax(query, key), value


def timm_latent(module: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """timm's `AttentionPoolLatent`: a learned query reads all tokens."""
    key, value = (_heads(part, module.num_heads) for part in module.kv(tokens).chunk(2, -1))
    query = _heads(module.q(module.latent), module.num_heads)
    return _softmax(query, key), value


def timm_class(module: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """timm's `ClassAttn`: the class token reads itself and all patches."""
    query, key, value = (_heads(part(tokens), module.num_heads) for part in (module.q, module.k, module.v))
    return _softmax(query[:, :, :1], key), value


# The families -------------------------------------------------------------------------------------------------------


Parts = dict[str, "str | int"]

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
"""The shape of a tiny model of timm without stages."""


def _blocks(paths: Iterable[str], attn: Parts, mlp: Parts) -> tuple[Branch, ...]:
    """The branches of plain blocks: `{b}` in the given parts stands for the block's own path."""
    made = []
    for path in paths:
        for parts, kind in ((attn, "attn"), (mlp, "mlp")):
            filled = {key: value.format(b=path) if isinstance(value, str) else value for key, value in parts.items()}
            made.append(Branch(kind=kind, **filled))
    return tuple(made)


def _numbered(prefix: str, count: int = 2) -> list[str]:
    return [f"{prefix}.{number}" for number in range(count)]


def _timm(heads: int, paths: Iterable[str], attn: Parts | None = None, mlp: Parts | None = None) -> tuple[Branch, ...]:
    return _blocks(
        paths,
        {"path": "{b}.attn", "source": "{b}.attn.proj", "heads": heads, **(attn or {})},
        {"path": "{b}.mlp", "source": "{b}.mlp.fc2", **(mlp or {})},
    )


def _timm_model(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=0, **options)


def _vit(name: str, model: str, norms: tuple[str, ...], tokens: bool = False, **options: object) -> Family:
    options = PLAIN | options
    return Family(
        name=name,
        build=_timm_model(model, **options),
        size=options["img_size"],
        branches=_timm(options["num_heads"], _numbered("blocks", options["depth"])),
        norms=norms,
        entry=("input:blocks.0",),
        tokens=Attend(timm_vit if tokens else watched),
    )


def _vits() -> list[Family]:
    registers = {"reg_tokens": 4, "no_embed_class": True, "img_size": 28, "patch_size": 7}
    swiglu = Family(
        name="timm/dinov2_swiglu",
        build=_timm_model(
            "vit_giant_patch14_dinov2", img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=3, mlp_ratio=4.0
        ),
        size=28,
        branches=_timm(3, _numbered("blocks")),
        norms=("norm",),
        entry=("input:blocks.0",),
    )
    siglip = _vit("timm/siglip", "vit_base_patch16_siglip_224", ("norm",))
    siglip = replace(
        siglip,
        branches=(*siglip.branches, Branch("attn_pool.mlp", "mlp", "attn_pool.mlp.fc2")),
        readings=(Reading("attn_pool", timm_latent, "attn_pool.kv", "attn_pool.proj", heads=3),),
    )
    behind = _vit(
        "timm/vit_post_norm",
        "vit_tiny_patch16_224",
        ("norm", *(f"{block}.norm{n}" for block in _numbered("blocks") for n in (1, 2))),
        block_fn=ResPostBlock,
        init_values=0.1,
    )
    behind = replace(behind, branches=_timm(3, _numbered("blocks"), {"end": "{b}.norm1"}, {"end": "{b}.norm2"}))
    beside = _vit("timm/vit_parallel", "vit_tiny_patch16_224", ("norm",), block_fn=ParallelThingsBlock, init_values=0.1)
    beside = replace(
        beside,
        branches=tuple(
            branch
            for block in _numbered("blocks")
            for branch in (
                *(Branch(f"{a}.attn", "attn", f"{a}.attn.proj", 3) for a in _numbered(f"{block}.attns")),
                *(Branch(f"{m}.mlp", "mlp", f"{m}.mlp.fc2") for m in _numbered(f"{block}.ffns")),
            )
        ),
    )
    return [
        _vit("timm/deit", "deit_tiny_patch16_224", ("norm",), tokens=True),
        _vit("timm/vit_avg", "vit_tiny_patch16_224", ("fc_norm",), tokens=True, global_pool="avg", class_token=False),
        _vit("timm/deit_distilled", "deit_tiny_distilled_patch16_224", ("norm",), tokens=True),
        _vit("timm/dino", "vit_small_patch16_224.dino", ("norm",), depth=3, num_heads=2),
        _vit("timm/dinov2", "vit_small_patch14_dinov2", ("norm",), img_size=28, patch_size=7),
        _vit("timm/dinov2_reg", "vit_small_patch14_reg4_dinov2", ("norm",), tokens=True, **registers),
        swiglu,
        siglip,
        behind,
        beside,
    ]


def _evas() -> list[Family]:
    blocks = _numbered("blocks")
    scaled = {"source": "{b}.mlp.norm", "end": "{b}.mlp.fc2"}
    inner = {"source": "{b}.attn.norm", "end": "{b}.attn.proj"}
    scaled_norms = tuple(f"{block}.mlp.norm" for block in blocks)
    inner_norms = tuple(f"{block}.attn.norm" for block in blocks)

    def family(name: str, model: str, branches: tuple[Branch, ...], norms: tuple[str, ...], **more: object) -> Family:
        build = _timm_model(model, **PLAIN, **more)
        return Family(name, build, 32, branches, norms, ("input:blocks.0",))

    plain, gated = _timm(3, blocks), _timm(3, blocks, mlp=scaled)
    token = {"global_pool": "token", "use_fc_norm": False}
    return [
        family("timm/eva02", "eva02_tiny_patch14_224", plain, ("fc_norm",)),
        family("timm/eva02_scale_mlp", "eva02_base_patch14_448", gated, ("fc_norm", *scaled_norms)),
        family(
            "timm/eva02_clip",
            "eva02_base_patch16_clip_224",
            _timm(3, blocks, attn=inner, mlp=scaled),
            ("norm", *scaled_norms, *inner_norms),
        ),
        family("timm/beit", "beit_base_patch16_224", plain, ("fc_norm",)),
        family("timm/beit_cls", "beit_base_patch16_224", plain, ("norm",), **token),
    ]


def _cait() -> Family:
    def reading(number: int) -> Reading:
        path = f"blocks_token_only.{number}.attn"
        norm = f"blocks_token_only.{number}.norm1"
        return Reading(path, timm_class, f"{path}.v", f"{path}.proj", heads=3, own=1, norm=norm)

    tail = tuple(Branch(f"{block}.mlp", "mlp", f"{block}.mlp.fc2") for block in _numbered("blocks_token_only"))
    return Family(
        name="timm/cait",
        build=_timm_model("cait_xxs24_224", **PLAIN),
        size=32,
        branches=(*_timm(3, _numbered("blocks")), *tail),
        norms=("blocks_token_only.0.norm1", "blocks_token_only.1.norm1", "norm"),
        entry=("input:blocks.0", "param:cls_token"),
        readings=(reading(0), reading(1)),
    )


def _convit() -> Family:
    path = "blocks.1.attn"
    return Family(
        name="timm/convit",
        build=_timm_model("convit_tiny", **PLAIN | {"embed_dim": 8, "depth": 3}, local_up_to_layer=1),
        size=32,
        branches=tuple(branch for branch in _timm(3, _numbered("blocks", 3)) if branch.path != path),
        norms=("blocks.1.norm1", "norm"),
        entry=("input:blocks.0", "param:cls_token"),
        readings=(Reading(path, timm_vit, f"{path}.qkv", f"{path}.proj", heads=3, own=1, norm="blocks.1.norm1"),),
    )


def _swins() -> list[Family]:
    depths, heads = (2, 2), (2, 4)
    base = {"patch_size": 4, "embed_dim": 16, "depths": depths, "num_heads": heads, "mlp_ratio": 2.0}

    stages = [_numbered(f"layers.{stage}.blocks") for stage in range(2)]

    def branches(attn: Parts | None = None, mlp: Parts | None = None) -> tuple[Branch, ...]:
        return (*_timm(heads[0], stages[0], attn, mlp), *_timm(heads[1], stages[1], attn, mlp))

    def swin(name: str, size: int, window: int) -> Family:
        return Family(
            name=name,
            build=_timm_model("swin_tiny_patch4_window7_224", img_size=size, window_size=window, **base),
            size=size,
            branches=branches(),
            norms=("layers.1.downsample.norm", "norm"),
            entry=("input:layers.0.blocks.0",),
            tokens=Attend(timm_swin, timm_swin_cells),
        )

    behind = tuple(f"{block}.norm{n}" for stage in stages for block in stage for n in (1, 2))

    def second(name: str, size: int, window: int) -> Family:
        return Family(
            name=name,
            build=_timm_model("swinv2_tiny_window8_256", img_size=size, window_size=window, **base),
            size=size,
            branches=branches({"end": "{b}.norm1"}, {"end": "{b}.norm2"}),
            norms=(*behind, "layers.1.downsample.norm", "norm"),
            entry=("input:layers.0.blocks.0",),
            tokens=Attend(watched, timm_swin_cells),
        )

    return [
        swin("timm/swin", 32, 2),
        swin("timm/swin_padded", 40, 4),
        second("timm/swinv2", 32, 2),
        second("timm/swinv2_padded", 40, 4),
    ]


def _timm_maxvit_branches(block: str, heads: int) -> tuple[Branch, ...]:
    made = [Branch(f"{block}.conv", "conv", f"{block}.conv.conv3_1x1", axis=1)]
    for part in ("attn_block", "attn_grid"):
        made.append(Branch(f"{block}.{part}.attn", "attn", f"{block}.{part}.attn.proj", heads))
        made.append(Branch(f"{block}.{part}.mlp", "mlp", f"{block}.{part}.mlp.fc2"))
    return tuple(made)


def _maxvit_read(model: nn.Module, images: Tensor) -> Tensor:
    head = model.head
    return head.flatten(head.norm(head.global_pool(model.forward_features(images))))


def _maxvits() -> list[Family]:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg, model_cfgs

    tf = model_cfgs["maxvit_tiny_tf"]
    transformer = {**vars(tf.transformer_cfg), "dim_head": 8, "window_size": (2, 2), "grid_size": (2, 2)}
    cfg = MaxxVitCfg(
        **{
            **vars(tf),
            "embed_dim": (16, 32),
            "depths": (1, 2),
            "block_type": ("M", "M"),
            "stem_width": 16,
            "head_hidden_size": 32,
            "transformer_cfg": MaxxVitTransformerCfg(**transformer),
        }
    )
    blocks = [("stages.0.blocks.0", 2), ("stages.1.blocks.0", 4), ("stages.1.blocks.1", 4)]
    return [
        Family(
            name="timm/maxvit",
            build=lambda: Readout(MaxxVit(cfg, img_size=32, num_classes=0), _maxvit_read),
            size=32,
            branches=tuple(branch for block, heads in blocks for branch in _timm_maxvit_branches(block, heads)),
            norms=("head.norm",),
            entry=("input:stages",),
            affine=("stages.1.blocks.0.conv.shortcut.expand",),
            tokens=Attend(timm_maxvit, maxvit_cells),
        )
    ]


def _pvt() -> Family:
    heads = (1, 2, 4)
    return Family(
        name="timm/pvtv2",
        build=_timm_model(
            "pvt_v2_b0",
            depths=(1, 2, 1),
            embed_dims=(16, 24, 32),
            num_heads=heads,
            sr_ratios=(4, 2, 1),
            mlp_ratios=(2, 2, 2),
        ),
        size=32,
        # The MLPs of this family hold a depthwise convolution, which makes them convolution branches.
        branches=tuple(
            replace(branch, kind="attn" if branch.heads else "conv")
            for stage, depth in enumerate((1, 2, 1))
            for branch in _timm(heads[stage], _numbered(f"stages.{stage}.blocks", depth))
        ),
        norms=(
            "stages.0.norm",
            "stages.1.downsample.norm",
            "stages.1.norm",
            "stages.2.downsample.norm",
            "stages.2.norm",
        ),
        entry=("input:stages.0.blocks.0",),
        affine=("stages.1.downsample.proj", "stages.2.downsample.proj"),
    )


def _open_clips() -> list[Family]:
    from open_clip.transformer import QuickGELU, VisionTransformer

    def family(name: str, norms: tuple[str, ...] = ("ln_post",), **options: object) -> Family:
        shape = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "heads": 3, "mlp_ratio": 2.0}
        attn = {"path": "{b}.attn", "source": "{b}.attn", "heads": 3, "weight": "{b}.attn.out_proj"}
        mlp = {"path": "{b}.mlp", "source": "{b}.mlp.c_proj"}
        return Family(
            name=name,
            build=lambda: VisionTransformer(**{**shape, "output_dim": 20, **options}),
            size=32,
            branches=_blocks(_numbered("transformer.resblocks"), attn, mlp),
            norms=norms,
            entry=("input:transformer.resblocks.0",),
            tokens=Attend(torch_multihead),
        )

    return [family("open_clip/vit"), family("open_clip/vit_quickgelu", act_layer=QuickGELU, ls_init_value=0.1)]


def _transformers() -> list[Family]:
    shape = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
    }
    attn = {"path": "{b}.attention", "source": "{b}.attention.o_proj", "heads": 3}
    mlp = {"path": "{b}.mlp", "source": "{b}.mlp.fc2"}
    down = {"path": "{b}.mlp", "source": "{b}.mlp.down_proj"}
    own = {"path": "{b}.self_attn", "source": "{b}.self_attn.out_proj", "heads": 3}

    def first(model: nn.Module, images: Tensor) -> Tensor:
        return model(images).last_hidden_state[:, 0]

    def pooled(model: nn.Module, images: Tensor) -> Tensor:
        return model(images).pooler_output

    def family(
        name: str,
        model: Callable[[], nn.Module],
        read: Callable[[nn.Module, Tensor], Tensor],
        branches: tuple[Branch, ...],
        norms: tuple[str, ...],
        entry: str,
        **more: object,
    ) -> Family:
        return Family(name, lambda: Readout(model(), read), 32, branches, norms, (f"input:{entry}",), **more)

    dinov2 = {key: value for key, value in shape.items() if key != "intermediate_size"} | {"mlp_ratio": 2}

    def dino(**options: object) -> Callable[[], nn.Module]:
        return lambda: transformers.Dinov2Model(transformers.Dinov2Config(**dinov2, **options))

    def registers() -> nn.Module:
        config = transformers.Dinov2WithRegistersConfig(**dinov2, num_register_tokens=3)
        return transformers.Dinov2WithRegistersModel(config)

    depths, heads = (2, 2), (2, 4)

    def swin(window: int, side: int) -> Callable[[], nn.Module]:
        config = transformers.SwinConfig(
            image_size=side,
            patch_size=4,
            embed_dim=16,
            depths=depths,
            num_heads=heads,
            window_size=window,
            mlp_ratio=2.0,
        )
        return lambda: transformers.SwinModel(config)

    swin_branches = tuple(
        branch
        for stage in range(2)
        for branch in _blocks(_numbered(f"encoder.layers.{stage}.blocks"), {**attn, "heads": heads[stage]}, mlp)
    )
    swin_norms = ("encoder.layers.0.downsample.norm", "layernorm")
    layers = _blocks(_numbered("encoder.layers"), own, mlp)
    siglip_layers = (*layers, Branch("head.mlp", "mlp", "head.mlp.fc2"))
    pool = Reading("head.attention", torch_multihead, "head.attention", "head.attention", heads=3)
    clip_layers = _blocks(_numbered("vision_model.encoder.layers"), own, mlp)
    vit_layers = _blocks(_numbered("layers"), attn, mlp)
    dino_layers = _blocks(_numbered("encoder.layer"), attn, mlp)
    dino_gated = _blocks(_numbered("encoder.layer"), attn, down)
    dino_entry = "encoder.layer.0"
    written = Attend(hf_separate)

    def swins(name: str, window: int, side: int) -> Family:
        split = Attend(watched, hf_swin_cells)
        built = family(
            name, swin(window, side), pooled, swin_branches, swin_norms, "encoder.layers.0.blocks.0", tokens=split
        )
        return replace(built, size=side)

    return [
        family("hf/dinov2", dino(), pooled, dino_layers, ("layernorm",), dino_entry, tokens=written),
        family("hf/dinov2_swiglu", dino(use_swiglu_ffn=True), pooled, dino_gated, ("layernorm",), dino_entry),
        family("hf/dinov2_reg", registers, pooled, dino_layers, ("layernorm",), dino_entry),
        family(
            "hf/vit",
            lambda: transformers.ViTModel(transformers.ViTConfig(**shape), add_pooling_layer=False),
            first,
            vit_layers,
            ("layernorm",),
            "layers.0",
        ),
        family(
            "hf/clip",
            lambda: transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(**shape, projection_dim=20)
            ),
            lambda model, images: model(images).image_embeds,
            clip_layers,
            ("vision_model.post_layernorm",),
            "vision_model.encoder.layers.0",
        ),
        family(
            "hf/siglip",
            lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape)),
            pooled,
            siglip_layers,
            ("post_layernorm",),
            "encoder.layers.0",
            readings=(pool,),
            tokens=written,
        ),
        swins("hf/swin", 2, 32),
        swins("hf/swin_padded", 4, 40),
    ]


def _torchvision() -> list[Family]:
    from torchvision.models.swin_transformer import (
        PatchMerging,
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlock,
        SwinTransformerBlockV2,
    )

    def without(name: str, model: nn.Module) -> nn.Module:
        setattr(model, name, nn.Identity())
        return model

    attn = {
        "path": "{b}.self_attention",
        "source": "{b}.self_attention",
        "heads": 3,
        "weight": "{b}.self_attention.out_proj",
    }
    vit_blocks = [f"encoder.layers.encoder_layer_{number}" for number in range(2)]
    vit = Family(
        name="torchvision/vit",
        build=lambda: without("heads", torchvision.models.VisionTransformer(32, 8, 2, 3, 24, 48)),
        size=32,
        branches=_blocks(vit_blocks, attn, {"path": "{b}.mlp", "source": "{b}.mlp.3"}),
        norms=("encoder.ln",),
        entry=("input:encoder.layers",),
        tokens=Attend(torch_multihead),
    )

    heads = (2, 4)

    def swin(name: str, side: int, window: int, second: bool) -> Family:
        stages = ("features.1", "features.3")
        changes = {"end": "{b}.norm1"} if second else {}
        mlp_changes = {"end": "{b}.norm2"} if second else {}
        branches = tuple(
            branch
            for stage, count in zip(stages, heads, strict=True)
            for branch in _blocks(
                _numbered(stage),
                {"path": "{b}.attn", "source": "{b}.attn", "heads": count, "weight": "{b}.attn.proj", **changes},
                {"path": "{b}.mlp", "source": "{b}.mlp.3", **mlp_changes},
            )
        )
        behind = tuple(f"{stage}.{number}.norm{n}" for stage in stages for number in range(2) for n in (1, 2))
        return Family(
            name=name,
            build=lambda: without(
                "head",
                SwinTransformer(
                    [4, 4],
                    16,
                    [2, 2],
                    list(heads),
                    [window, window],
                    mlp_ratio=2.0,
                    stochastic_depth_prob=0.0,
                    block=SwinTransformerBlockV2 if second else SwinTransformerBlock,
                    downsample_layer=PatchMergingV2 if second else PatchMerging,
                ),
            ),
            size=side,
            branches=branches,
            norms=(*(behind if second else ()), "features.2.norm", "norm"),
            entry=("input:features.1",),
            tokens=Attend(watched, partial(torchvision_swin_cells, side=side // 4)),
        )

    def maxvit() -> nn.Module:
        model = torchvision.models.MaxVit(
            (32, 32), 16, 2, [16, 32], [1, 2], head_dim=8, stochastic_depth_prob=0.0, mlp_ratio=2, num_classes=5
        )
        model.classifier = model.classifier[:3]
        return model

    maxvit_branches = []
    for block, layer, count in ((0, 0, 2), (1, 0, 4), (1, 1, 4)):
        path = f"blocks.{block}.layers.{layer}.layers"
        maxvit_branches.append(Branch(f"{path}.MBconv.layers", "conv", f"{path}.MBconv.layers.conv_c", axis=1))
        for part in ("window_attention", "grid_attention"):
            attention = f"{path}.{part}.attn_layer"
            maxvit_branches.append(Branch(attention, "attn", f"{attention}.1.merge", count))
            maxvit_branches.append(Branch(f"{path}.{part}.mlp_layer", "mlp", f"{path}.{part}.mlp_layer.3"))
    return [
        vit,
        swin("torchvision/swin", 32, 2, second=False),
        swin("torchvision/swin_padded", 40, 4, second=False),
        swin("torchvision/swin_v2", 32, 2, second=True),
        Family(
            name="torchvision/maxvit",
            build=maxvit,
            size=32,
            branches=tuple(maxvit_branches),
            norms=("classifier.2",),
            entry=("input:blocks.0",),
            tokens=Attend(watched, maxvit_cells, mlps=True),
            affine=("blocks.0.layers.0.layers.MBconv.proj.1", "blocks.1.layers.0.layers.MBconv.proj.1"),
        ),
    ]


FAMILIES: tuple[Family, ...] = (
    *_vits(),
    *_evas(),
    _cait(),
    _convit(),
    *_swins(),
    *_maxvits(),
    _pvt(),
    *_open_clips(),
    *_transformers(),
    *_torchvision(),
)
