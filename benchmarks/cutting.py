"""Configurations of transformers with fewer and narrower layers and smaller images, cut by the names of their fields.

Places of layers (`out_indices`, layers with global attention) move along; widths and heads are divided by one number.
What was cut is said.
"""

from __future__ import annotations

from typing import Any

DEPTH, BLOCKS, STAGE, FRAMES, WIDTH = 2, 12, 1, 8, 256
"""The most layers, blocks in all, blocks of one stage where there are more, frames, and channels that are left, where
heads can be divided by as much.
"""

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "layers", "encoder_layers")
STAGES = ("depths", "blocks_per_stage", "layers_per_stage", "num_block_repeats")
SIZES = ("image_size", "crop_size", "pretrain_img_size", "img_size")
PLACES = ("indices", "indexes", "idxs", "blocks", "layers")
WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "embed_dim",
    "num_heads",
    "mlp_dim",
    "d_model",
    "ffn_dim",
    "projection_dim",
    "out_hidden_size",
    "attention_heads",
    "encoder_ffn_dim",
    "encoder_attention_heads",
)
WIDE = ("hidden_size", "embed_dim", "d_model")
COUNTS = ("num_frames", "frames_per_clip")


def cut(config: Any, side: int, *, narrow: bool = False) -> tuple[Any, str]:
    """A configuration of the same class, cut.

    Args:
        config: What is cut.
        side: The most pixels to a side, where the model's size can be halved to it.
        narrow: Whether widths and heads are cut too.

    Returns:
        It, and what was cut: `layers 27 -> 2; images 1024 -> 256 px; widths / 4`; empty where it is small as it is.

    Raises:
        Exception: What the class says of values that do not go together.
    """
    values, told = config.to_dict(), {}
    _cut(values, "", side, told)
    if narrow:
        _narrow(values, "", told)
    said = "; ".join(dict.fromkeys(told.values()))
    return (type(config).from_dict(values), said) if said else (config, "")


def _cut(values: dict[str, Any], path: str, side: int, told: dict[str, str]) -> None:
    for name in [name for name, value in values.items() if isinstance(value, dict)]:
        _cut(values[name], f"{path}{name}.", side, told)
    stages = [name for name in STAGES if isinstance(values.get(name), list)]
    for name in stages:
        flat = all(isinstance(count, int) for count in values[name]) and sum(values[name]) > BLOCKS
        fewer = [min(count, STAGE) for count in values[name]] if flat else values[name]
        if fewer != values[name]:
            if not _aside(path):
                told[path + name] = f"blocks {_joined(values[name])} -> {_joined(fewer)}"
            _moved(values, sum(values[name]), sum(fewer))
            values[name] = fewer
    for name in () if stages else LAYERS:
        count = values.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and count > DEPTH:
            if not _aside(path):
                told[path + name] = f"layers {count} -> {DEPTH}"
            _moved(values, count, DEPTH)
            values[name] = DEPTH
    values.pop("stage_names", None)
    for name in SIZES:
        _smaller(values, name, side, told)
    for name in COUNTS:
        if isinstance(values.get(name), int) and values[name] > FRAMES:
            told[name] = f"frames {values[name]} -> {FRAMES}"
            values[name] = FRAMES


def _narrow(values: dict[str, Any], path: str, told: dict[str, str]) -> None:
    for name in [name for name, value in values.items() if isinstance(value, dict)]:
        _narrow(values[name], f"{path}{name}.", told)
    widths = {name: values[name] for name in WIDTHS if isinstance(values.get(name), int) and values[name] > 1}
    wide, by = max((widths.get(name, 0) for name in WIDE), default=0), 1
    while wide // by > WIDTH and all(width % (2 * by) == 0 for width in widths.values()):
        by *= 2
    if by > 1:
        values |= {name: width // by for name, width in widths.items()}
        if not _aside(path):
            told[f"{path} width"] = f"widths / {by}"


def _aside(path: str) -> bool:
    """Whether a configuration is of another kind of input, or of what comes out."""
    return any(other in path for other in ("text", "audio", "decoder", "speech"))


def _moved(values: dict[str, Any], old: int, new: int) -> None:
    """Lists with an entry for each layer get shorter, and places of layers move."""
    for name, value in values.items():
        if not isinstance(value, list) or not value:
            continue
        if name in ("out_indices",):
            if max(value) == old:  # counted from the stem
                values[name] = sorted({max(1, round(place * new / old)) for place in value})
        elif name.endswith(PLACES) and all(isinstance(own, int) for own in value):
            if max(value) < old and name not in STAGES:
                values[name] = [max(0, round((place + 1) * new / old) - 1) for place in value]
        elif len(value) == old and name not in STAGES:
            values[name] = value[:new]
    if isinstance(values.get("out_indices"), list):
        values.pop("out_features", None)


def _smaller(values: dict[str, Any], name: str, most: int, told: dict[str, str]) -> None:
    size = values.get(name)
    sides = size if isinstance(size, list) else [size]
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        return
    half = 1
    while max(sides) // half > most and all(side % (2 * half) == 0 for side in sides):
        half *= 2
    if half > 1:
        told[name] = f"images {max(sides)} -> {max(sides) // half} px"
        values[name] = [side // half for side in sides] if isinstance(size, list) else size // half


def _joined(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
