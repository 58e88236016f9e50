"""A checkpoint, fitted to a module: its weights found in the file, its head built, its positions resampled.

Problem. Trainers wrap and rename: the same backbone is `state_dict` with `model.` before every name, `teacher` with
`module.backbone.`, or a table beside its running average; its head has other classes, or is gone; its positions are
those of another image size.

Idea. No list of what trainers do. A *place* is a table of the file, what is taken off the names there (`prefix`), and
the part of the module that they then name (`root`). Every suffix of every name that is one of the module's votes for a
place, and the place with the most tensors of the right names and shapes is taken. What does not fit is given to the
library's own conversion. What the representation needs must then be there, and nothing else may lie among it; what
lies above it may differ. Everything that was done is said.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unweave.errors import ArgumentError, ModelError
from unweave.models.heads import fit_head, heads, top
from unweave.models.tables import Tables, read_tables

State = dict[str, Tensor]

Convert = Callable[[State, nn.Module], State]
"""A library's own way to make a state dict fit a module of its own: names of other code, positions of another size."""

_AVERAGED = ("ema", "average", "avg", "swa", "shadow", "momentum", "encoder_k", "student")
"""What names of a table or a prefix say where it is the second choice: a running average, or who learns from one."""


@dataclass(frozen=True)
class Loaded:
    """What was done with a checkpoint.

    Attributes:
        notes: In sentences: where in the file the weights were, what was taken off, resampled, left out.
        missing: Tensors of the module that the file does not have.
    """

    notes: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Place:
    """Where in a file weights are, and what they become in the module.

    Attributes:
        table: The table's own place.
        prefix: What every name begins with, and loses.
        root: What every name then gets.
        fitting: How many tensors have the name and the shape of one of the module's.
        named: How many have the name.
    """

    table: str
    prefix: str
    root: str
    fitting: int
    named: int

    @property
    def words(self) -> list[str]:
        """The segments of its name."""
        return [word for word in f"{self.table}.{self.prefix}".split(".") if word]

    @property
    def name(self) -> str:
        """What it is called: the table, then the prefix."""
        return ".".join(self.words)

    @property
    def averaged(self) -> bool:
        """Whether its name says that it is the second choice."""
        return any(sign in self.name.lower() for sign in _AVERAGED)


def load_checkpoint(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    tower: str = "",
    needed: Callable[[], frozenset[str]] | None = None,
    convert: Convert | None = None,
) -> Loaded:
    """Load a checkpoint into a module, in place.

    Args:
        module: Its classifier gets as many classes as the checkpoint has.
        path: A safetensors or weights-only torch file.
        key: What the table or the prefix is called, where the file has the weights several times (`state_dict_ema`,
            `teacher`); None for the ones that are no average.
        tower: The path of the part that matters; the whole module if empty.
        needed: Gives the names of the tensors that must be there, asked only if some are not; all if not given.
        convert: The library's own conversion, tried where names or shapes do not fit.

    Raises:
        ArgumentError: Nothing in the file is called by the key.
        ModelError: The file cannot be read, or does not fit: what is missing, unexpected and differently shaped.
    """
    wanted = module.state_dict()
    of_file = read_tables(path)
    tables = {name: _joined(table, wanted) for name, table in of_file.items()}
    place, others = _chosen(tables, module, tower, key, str(path), needed)
    table = tables[place.table]
    given = {
        place.root + name[len(place.prefix) :]: tensor
        for name, tensor in table.items()
        if name.startswith(place.prefix)
    }
    notes = _about_the_place(place, others, table)
    if table is not of_file[place.table]:
        notes.append("The numbers of chunks of blocks are taken out of the names.")
    state = given
    if convert is not None:
        state = _converted(given, module, convert, tower)
        notes += _about_conversion(given, state, wanted)
    if state.keys() != wanted.keys() or not _fits(state, wanted, tower):
        required = frozenset(wanted) if needed is None else needed()
        notes += fit_head(module, state, required, tower)
        wanted = module.state_dict()
        _check(state, module, required, tower, str(path))
        notes += _about_the_rest(state, wanted, required)
    state = {name: tensor for name, tensor in state.items() if name in wanted and tensor.shape == wanted[name].shape}
    _check_tensors(state, wanted, str(path))
    module.load_state_dict(state, strict=False)
    return Loaded(tuple(notes), frozenset(wanted.keys() - state.keys()))


# --- where the weights are


_CHUNK = re.compile(r"\.\d+\.(?=\d+\.)")
"""Between the name of a list and the number of a part in it: the number of a chunk, as sharded training names parts."""


def _joined(table: State, wanted: Mapping[str, Tensor]) -> State:
    """A table whose lists of parts are not cut into chunks; as it is, where that has not more of the wanted names."""
    joined = {_CHUNK.sub(".", name): tensor for name, tensor in table.items()}
    if len(joined) < len(table) or joined.keys() == table.keys():
        return table

    def known(names: Iterable[str]) -> int:
        ends = (name[start:] for name in names for start in (0, *_starts(name)))
        return sum(end in wanted for end in ends)

    return joined if known(joined) > known(table) else table


def _starts(name: str) -> list[int]:
    """Where the segments of a name begin, but for the first."""
    return [at + 1 for at, letter in enumerate(name) if letter == "."]


def _chosen(
    tables: Tables,
    module: nn.Module,
    tower: str,
    key: str | None,
    where: str,
    needed: Callable[[], frozenset[str]] | None,
) -> tuple[_Place, list[_Place]]:
    """The place that fits best, and the others that fit as well."""
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items() if name.startswith(tower)}
    places = sorted(_places(tables, wanted), key=lambda place: (-place.fitting, -place.named, place.averaged))
    if key is not None:
        asked = [word for word in key.split(".") if word]
        among = [place for place in places if _holds(place.words, asked)]
        if not among:
            there = list(dict.fromkeys(place.name for place in places if place.named > 1 and place.name))
            raise ArgumentError(
                f"Nothing in the checkpoint is called {key!r} and has weights of this model.",
                where=where,
                cure=f"one of {', '.join(there[:6])}" if there else "leave the key out",
            )
        places = among
    if not places:
        names = next(iter(tables.values()))
        raise ModelError(
            f"None of the file's tensors is one of the model's: it has {_few(names)}, "
            f"and the model {_few(module.state_dict())}.",
            where=where,
            cure="choose the model id that the checkpoint was saved from, or convert its names",
        )
    best = places[0]
    rivals = [own for own in places if own.root == best.root and 10 * own.fitting > 9 * best.fitting]
    if len(rivals) > 1 and needed is not None:  # a head, that one has and another has not, does not decide
        required = needed()
        counts = {
            (own.table, own.prefix, own.root): own.fitting
            for own in _places(tables, {name: shape for name, shape in wanted.items() if name in required})
        }
        rivals = [replace(own, fitting=counts.get((own.table, own.prefix, own.root), 0)) for own in rivals]
        rivals.sort(key=lambda own: (-own.fitting, own.averaged))
    best = rivals[0]
    return best, [own for own in rivals[1:] if own.fitting == best.fitting]


def _places(tables: Tables, wanted: Mapping[str, torch.Size]) -> list[_Place]:
    found: list[_Place] = []
    for root in _roots(wanted):
        shapes = {name[len(root) :]: shape for name, shape in wanted.items() if name.startswith(root)}
        for table, tensors in tables.items():
            fitting, named = Counter[str](), Counter[str]()
            for name, tensor in tensors.items():
                for start in (0, *_starts(name)):
                    shape = shapes.get(name[start:])
                    if shape is not None:
                        named[name[:start]] += 1
                        fitting[name[:start]] += shape == tensor.shape
            found += [_Place(table, prefix, root, fitting[prefix], count) for prefix, count in named.items()]
    return found


def _roots(wanted: Collection[str]) -> list[str]:
    """The parts that hold most of some tensors: a checkpoint may be of one of them alone."""
    counts = Counter(name[: at + 1] for name in wanted for at, letter in enumerate(name) if letter == ".")
    return ["", *sorted((path for path, count in counts.items() if 2 * count > len(wanted)), key=len)]


def _holds(words: Sequence[str], asked: Sequence[str]) -> bool:
    return any(list(words[start : start + len(asked)]) == list(asked) for start in range(len(words)))


def _about_the_place(place: _Place, others: Sequence[_Place], table: Mapping[str, Tensor]) -> list[str]:
    notes = []
    if place.name:
        notes.append(f"The weights are those under `{place.name}`.")
    names = list(dict.fromkeys(other.name or "the file itself" for other in others))
    if names:
        notes[-1:] = [
            f"The weights are those under `{place.name}`; also there, to be named by `checkpoint_key`: "
            f"{', '.join(f'`{name}`' for name in names)}."
        ]
    beside = [name for name in table if not name.startswith(place.prefix)]
    beside = [name for name in beside if not any(name.startswith(other.prefix) for other in others if other.prefix)]
    if beside:
        notes.append(f"Left out of the file: {_grouped(beside)}.")
    if place.root:
        notes.append(f"The file is of `{place.root.rstrip('.')}` alone.")
    return notes


# --- making it fit


def _fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tower: str) -> bool:
    return all(
        name in state and state[name].shape == tensor.shape for name, tensor in wanted.items() if name.startswith(tower)
    )


def _converted(given: State, module: nn.Module, convert: Convert, tower: str) -> State:
    """What the library makes of a state, unless it then fits less than before."""
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items() if name.startswith(tower)}

    def fitting(state: Mapping[str, Tensor]) -> int:
        return sum(name in state and state[name].shape == shape for name, shape in wanted.items())

    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            state = convert(dict(given), module)
    except Exception:  # it was written for files of its own library, and trips over any other
        return given
    filters = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, nn.modules.conv._ConvNd)}
    for name in filters & given.keys() & state.keys():
        if given[name].ndim == state[name].ndim:
            state[name] = given[name]  # filters of another size are another model's: only positions are resampled
    return state if fitting(state) >= fitting(given) else given


def _about_conversion(given: State, state: State, wanted: Mapping[str, Tensor]) -> list[str]:
    resampled = [
        f"{name} {list(given[name].shape)} to {list(tensor.shape)}"
        for name, tensor in state.items()
        if name in given and name in wanted and tensor is not given[name] and not torch.equal(tensor, given[name])
    ]
    renamed = [name for name in state if name in wanted and name not in given]
    notes = []
    if resampled:
        notes.append(f"Positions are resampled to the image size: {_few(resampled)}.")
    if renamed:
        notes.append(f"The library converted {len(renamed)} names, such as {renamed[0]}.")
    return notes


# --- what fits, and what does not


def _check(state: State, module: nn.Module, required: frozenset[str], tower: str, where: str) -> None:
    wanted = module.state_dict()
    made = {name for name, _ in module.named_buffers() if not wanted.get(name, torch.empty(0)).is_floating_point()}
    missing = sorted(name for name in required if name not in state and name in wanted and name not in made)
    shapes = [
        f"{name} {list(state[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(required)
        if name in state and name in wanted and name not in made and state[name].shape != wanted[name].shape
    ]
    over = [name for name in state if name not in wanted]
    unexpected = sorted(name for name in over if _is_among(name, over, module, required, tower))
    misfits = [("missing", missing), ("unexpected", unexpected), ("differently shaped", shapes)]
    if any(names for _, names in misfits):
        listed = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in misfits if names)
        raise ModelError(
            f"The checkpoint does not fit the model. {listed}.", where=where, cure=_cure(missing, unexpected, shapes)
        )


def _is_among(name: str, over: Collection[str], module: nn.Module, required: frozenset[str], tower: str) -> bool:
    """Whether an unexpected tensor lies among those that the representation needs.

    A part of its own beside them is above them, or of something else (a decoder, a projector). What lies deeper, or
    where the module has a part without weights, or one more of a list of parts, is of another model. So is a tensor
    that is no part's, such as registers, unless it is what masked patches are replaced by, or a temperature, or goes by
    its name with such a part (`decoder_pos_embed` with `decoder_blocks`). What a profiler counts is no weight.
    """
    tops = [top(head, required) for head in heads(module, required, tower)]
    if not name.startswith(tower) or any(name.startswith(f"{head}.") for head in tops):
        return False
    if name.rpartition(".")[2] in _COUNTED:
        return False
    parts, words, depth = dict(module.named_modules()), name.split("."), 0
    while depth < len(words) - 1 and ".".join(words[: depth + 1]) in parts:
        depth += 1
    known = "".join(f"{word}." for word in words[:depth])
    if known not in _roots(required):
        return True
    if depth == len(words) - 1:
        first = f"{known}{words[-1].partition('_')[0]}_"
        goes = any(own.startswith(first) and "." in own[len(known) :] for own in over)
        goes &= not any(own.startswith(first) for own in required)
        return not (goes or words[-1].startswith("mask") or "logit" in words[-1])
    return words[depth].isdigit()


_COUNTED = ("total_ops", "total_params")
"""What thop leaves in the modules that it counts the operations of."""


def _cure(missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]) -> str:
    if any("lora" in name or "adapter" in name or ".base_layer." in name for name in unexpected):
        return "merge the adapters into the model first (`merge_and_unload()` in PEFT), and save its state dict"
    if shapes and not missing and not unexpected and all("pos" in text or "table" in text for text in shapes):
        return "give the image size that the checkpoint was trained at (`image_size`)"
    if missing and not unexpected and not shapes:
        return "save all of the model's state dict, or choose the model id that the checkpoint was saved from"
    return (
        "choose the model id that the checkpoint was saved from, and its image size; "
        "or build that model in Python, load the file there, and give it to `Model.from_module`"
    )


def _check_tensors(state: State, wanted: Mapping[str, Tensor], where: str) -> None:
    odd = next((name for name, value in state.items() if not _is_ordinary(value)), None)
    if odd is not None:
        raise ModelError(
            f"The file holds weights that are sparse, quantised or left out, such as {odd}.",
            where=where,
            cure="save them as ordinary tensors: `to_dense()` or `dequantize()` makes one",
        )
    # Complex numbers would lose their imaginary part, and fractions what is behind the point.
    kinds = [
        f"{name} {tensor.dtype} for {wanted[name].dtype}"
        for name, tensor in state.items()
        if not torch.can_cast(tensor.dtype, wanted[name].dtype)
    ]
    if kinds:
        raise ModelError(
            f"The checkpoint does not fit the model. {len(kinds)} of another kind of number: {_few(kinds)}.",
            where=where,
            cure="save the weights as they were trained, in floating-point numbers",
        )


def _about_the_rest(state: State, wanted: Mapping[str, Tensor], required: frozenset[str]) -> list[str]:
    above = [name for name in wanted if name not in required]
    groups = {
        "Left out of the file": [name for name in state if name not in wanted],
        "Not in the file, and not used": [name for name in above if name not in state],
        "Of another shape in the file, and not used": [
            name for name in above if name in state and state[name].shape != wanted[name].shape
        ],
    }
    return [f"{what}: {_grouped(names)}." for what, names in groups.items() if names]


def _is_ordinary(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _grouped(names: Iterable[str]) -> str:
    """Tensors by the part they belong to: `head (2 tensors), criterion (1 tensor)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        words = name.split(".")
        groups.setdefault(words[0], []).append("/".join(words[:-1] or words))
    shared = {os.path.commonpath(paths).replace("/", "."): len(paths) for paths in groups.values()}
    return _few(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in shared.items())


def _few(names: Iterable[str], number: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")
