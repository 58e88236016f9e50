"""Every fact of every row of the table, against the operation itself; and every row, driven through all that asks it.

A row is one line of facts that the residual stream, the labels, the walk and surgery rely on. Here each operation is
run on random numbers, and what its row says is read off what it does: where its entries come from, what they are made
of, in what it is linear. Then every operation is captured in a small residual network, and the structure is asked
about it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import unweave.operations  # noqa: F401  (fills the table)
from unweave.components import PADDING
from unweave.decomposition.walk import walk
from unweave.graph.export import capture
from unweave.graph.graph import Graph, arguments, operation
from unweave.operations.table import TABLE, Row
from unweave.structure.labels import FILLED, OTHER, lengths, moved, sent
from unweave.structure.places import cells
from unweave.structure.residual import Paths
from unweave.surgery.outlets import known, outlets

SOURCE = Path(__file__).parents[2] / "src" / "unweave"
IMAGES = 2


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    """One thread: two of them wait for each other longer than such small tensors take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- samples -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Given:
    """A tensor argument.

    Attributes:
        shape: Without the images, if it varies with them.
        varies: Whether it varies with the images, or is a weight.
        positive: Whether its entries are above zero.
    """

    shape: tuple[int, ...]
    varies: bool
    positive: bool = False

    def drawn(self) -> Tensor:
        tensor = 3 * torch.randn((IMAGES, *self.shape) if self.varies else self.shape, dtype=torch.float64)
        return tensor.abs() + 0.2 if self.positive else tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an operation: `arguments` are tensors (`Given`), constants, or lists of them.

    Attributes:
        captured: Whether it appears in a captured graph under this name.
    """

    overload: torch._ops.OpOverload
    arguments: tuple[object, ...]
    captured: bool = True

    @property
    def operation(self) -> str:
        return self.overload._schema.name.replace("::", ".")

    @property
    def given(self) -> list[tuple[str, Given]]:
        """Its tensors that are not constants, by the names of the arguments; those of a list have one name."""
        names = [argument.name for argument in self.overload._schema.arguments]
        named = []
        for name, value in zip(names, self.arguments, strict=False):
            values = value if isinstance(value, (list, tuple)) else [value]
            named += [("input" if name == "self" else name, part) for part in values if isinstance(part, Given)]
        return named

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """The operation, with these in place of its tensors."""
        supply = iter(tensors)
        swapped = [_swapped(value, supply) for value in self.arguments]
        out = self.overload(*swapped)
        return out[0] if isinstance(out, (tuple, list)) else out

    def drawn(self) -> list[Tensor]:
        return [tensor.drawn() for _, tensor in self.given]

    @property
    def varying(self) -> list[int]:
        return [place for place, (_, tensor) in enumerate(self.given) if tensor.varies]

    def places(self, *names: str) -> list[int]:
        return [place for place, (name, _) in enumerate(self.given) if name in names]


def _swapped(value: object, supply: Iterator[Tensor]) -> object:
    if isinstance(value, (list, tuple)):
        return [_swapped(part, supply) for part in value]
    return next(supply) if isinstance(value, Given) else value


def x(*shape: int, positive: bool = False) -> Given:
    return Given(shape, True, positive)


def w(*shape: int, positive: bool = False) -> Given:
    return Given(shape, False, positive)


SAMPLES: list[Sample] = []
SHIPPED = {name for name in TABLE if name.startswith("aten.")}
"""The rows that are unweave's: the documentation adds some of its own."""


def sample(names: str, *given: object, captured: bool = True) -> None:
    """Calls of operations (`add.Tensor`, or `relu` where there is one overload) with these arguments."""
    for name in names.split():
        packet, _, overload = name.partition(".")
        SAMPLES.append(Sample(getattr(getattr(torch.ops.aten, packet), overload or "default"), given, captured))


TOKENS, MAP, SOLID = (6, 4), (4, 4, 6), (2, 2, 3, 3)
MASK = torch.arange(24).view(6, 4) % 3 == 0

sample("clone contiguous detach alias lift_fresh_copy positive", x(*TOKENS))
sample("to.dtype", x(*TOKENS), torch.float64, False, True)
sample("_to_copy", x(*TOKENS))
sample("dropout feature_dropout", x(*TOKENS), 0.5, False)
sample("type_as", x(*TOKENS), x(*TOKENS))
sample("view reshape _unsafe_view _reshape_copy", x(*TOKENS), [-1, 4, 6])
sample("flatten.using_ints", x(*MAP), 2)
sample("unflatten.int", x(*TOKENS), 1, [2, 3])
sample("squeeze.dim", x(1, 4), 1)
sample("unsqueeze", x(*TOKENS), 1)
sample("view_as reshape_as", x(*TOKENS), x(3, 8))
sample("permute", x(*MAP), [0, 2, 3, 1])
sample("transpose.int swapaxes swapdims", x(*TOKENS), 1, 2)
sample("t numpy_T matrix_H", x(4))
sample("mT mH adjoint", x(*TOKENS))
sample("movedim.int", x(*MAP), 1, 3)
sample("flip", x(*TOKENS), [1])
sample("roll", x(*MAP), [1, 2], [2, 3])
sample("pixel_unshuffle pixel_shuffle", x(*MAP), 2)
sample("expand broadcast_to", x(1, 4), [-1, 5, 4])
sample("expand_as", x(1, 4), x(5, 4))
sample("repeat tile", x(*TOKENS), [1, 2, 1])
sample("repeat_interleave.self_int", x(*TOKENS), 2, 1)
sample("select.int", x(*TOKENS), 1, 2)
sample("slice.Tensor slice_copy.Tensor", x(*TOKENS), 1, 1, 5, 2)
sample("narrow", x(*TOKENS), 1, 2, 3)
sample("unfold", x(*TOKENS), 1, 3, 2)
sample("constant_pad_nd", x(*MAP), [1, 0, 0, 2])
sample("pad", x(*MAP), [1, 0, 0, 2], "reflect")
sample("cat concat concatenate", [x(*TOKENS), x(2, 4)], 1)
sample("stack", [x(*TOKENS), x(*TOKENS)], 2)
sample("index_select", x(*TOKENS), 1, torch.tensor([5, 0, 0]))
sample("index.Tensor", x(*TOKENS), [None, torch.tensor([5, 0, 0])])
sample("index_put", x(*TOKENS), [None, torch.tensor([5, 0])], x(2, 4))
sample("copy", x(*TOKENS), x(6, 1))
sample("index_add", x(*TOKENS), 1, torch.tensor([5, 0]), x(2, 4))
sample("fill.Scalar", x(*TOKENS), 0.3)
sample("zero", x(*TOKENS))
sample("select_scatter", x(*TOKENS), x(4), 1, 2)
sample("slice_scatter", x(*TOKENS), x(2, 4), 1, 2, 4)
sample("where.self", MASK, x(*TOKENS), x(*TOKENS))
sample("masked_fill.Scalar", x(*TOKENS), MASK, 0.3)
sample("im2col", x(*MAP), [3, 3], [1, 1], [1, 1], [1, 1])

sample("add.Tensor sub.Tensor rsub.Tensor", x(*TOKENS), x(1, 4))
sample("neg", x(*TOKENS))
sample("mul.Tensor", x(*TOKENS), x(1, 4))
sample("div.Tensor", x(*TOKENS), x(6, 1, positive=True))
sample("lerp.Tensor", x(*TOKENS), x(*TOKENS), x(6, 1))
sample("addcmul", x(*TOKENS), x(*TOKENS), x(6, 1))
sample("linear", x(*TOKENS), w(5, 4), w(5))
sample("addmm", w(5), x(4), w(4, 5))
sample("mm", x(4), w(4, 5))
sample("bmm", x(*TOKENS), x(4, 5))
sample("baddbmm", w(6, 5), x(*TOKENS), x(4, 5))
sample("matmul", x(*TOKENS), x(4, 5))
sample("einsum", "btc,st->bsc", [x(*TOKENS), w(5, 6)])
sample("scaled_dot_product_attention", x(2, 6, 4), x(2, 6, 4), x(2, 6, 4))

sample("conv1d", x(*TOKENS), w(5, 6, 3), w(5), [1], [1])
sample("conv2d", x(*MAP), w(5, 4, 3, 3), w(5), [1, 1], [1, 1])
sample("conv3d", x(*SOLID), w(3, 2, 2, 2, 2), w(3))
sample("convolution", x(*MAP), w(5, 4, 2, 2), w(5), [2, 2], [0, 0], [1, 1], False, [0, 0], 1)
sample("col2im", x(12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])

sample("layer_norm", x(*TOKENS), [4], w(4), w(4))
sample("rms_norm", x(*TOKENS), [4], w(4), 1e-9)
sample("group_norm", x(*MAP), 2, w(4), w(4))
sample("instance_norm", x(*MAP), w(4), w(4), None, None, True, 0.1, 1e-9, False)
sample("batch_norm", x(*MAP), w(4), w(4), w(4), w(4, positive=True), False, 0.1, 1e-9, False)

sample("mean.dim sum.dim_IntList amax", x(*TOKENS), [1])
sample("cumsum", x(*TOKENS), 1)
sample("avg_pool1d", x(*TOKENS), [2], [1])
sample("avg_pool2d", x(*MAP), [3, 3], [1, 1], [1, 1])
sample("avg_pool3d", x(*SOLID), [2, 2, 2], [1, 1, 1])
sample("max_pool2d", x(*MAP), [3, 3], [2, 2], [1, 1])
sample("adaptive_avg_pool1d", x(*TOKENS), [3])
sample("adaptive_avg_pool2d", x(*MAP), [3, 3])
for name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    sample(f"{name}.vec", x(*MAP), [3, 9], False, None)
sample("upsample_nearest2d.vec _upsample_nearest_exact2d.vec", x(*MAP), [3, 9], None)

sample("gelu relu relu6 silu sigmoid tanh hardswish hardsigmoid hardtanh elu selu celu leaky_relu mish", x(*TOKENS))
sample("softplus log_sigmoid exp expm1 square abs erf sin cos atan sign", x(*TOKENS))
sample("log log1p sqrt rsqrt reciprocal", x(*TOKENS, positive=True))
sample("rrelu hardshrink softshrink", x(*TOKENS))
sample("glu", x(*TOKENS), 1)
sample("prelu", x(4), w(4))
sample("threshold", x(*TOKENS), 0.1, 0.2)
sample("rrelu_with_noise", x(*TOKENS), w(IMAGES, 6, 4), captured=False)  # exported as rrelu
sample("pow.Tensor_Scalar", x(*TOKENS), 3)
sample("clamp", x(*TOKENS), -0.5, 0.5)
sample("clamp_min clamp_max", x(*TOKENS), 0.1)
sample("maximum minimum", x(*TOKENS), x(*TOKENS))
sample("softmax.int log_softmax.int _safe_softmax", x(*TOKENS), 1)
sample("_softmax", x(*TOKENS), 1, False)
sample("linalg_vector_norm", x(*TOKENS), 2, [1])
sample("norm.ScalarOpt_dim", x(*TOKENS), 2, [1])
sample("var.dim std.dim", x(*TOKENS), [1])
sample("var_mean.dim", x(*TOKENS), [1], captured=False)  # becomes two operations
sample("topk", x(*TOKENS), 2, 1)
sample("sort argmax", x(*TOKENS), 1)
sample("max.dim min.dim", x(*TOKENS), 1, captured=False)  # become amax
sample("grid_sampler", x(*MAP), x(5, 5, 2), 0, 0, False)
sample(
    "lstm.input",
    x(6, 4),
    [w(1, 6, 3), w(1, 6, 3)],
    [w(12, 4), w(12, 3), w(12), w(12)],
    True,
    1,
    0.0,
    False,
    False,
    False,
    captured=False,  # in a graph its first axis, here the images, has a fixed length
)


def ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.operation.removeprefix("aten.") for sample in samples]


def test_every_row_has_a_sample() -> None:
    missing = sorted(SHIPPED - {sample.operation for sample in SAMPLES})
    assert not missing, (
        f"{', '.join(missing)}: add to SAMPLES of {Path(__file__).name} a call with its arguments, x(...) for what "
        "varies with the images and w(...) for weights, such as sample('linear', x(6, 4), w(5, 4), w(5)); and to "
        "test_rules.py a case with its twin."
    )


# -- what an operation does --------------------------------------------------------------------------------------------


def origins(sample: Sample, tensors: Sequence[Tensor]) -> Tensor | None:
    """For every entry of the output which of the tensors' entries it is (in one row), or -1 where it is a number that
    is filled in; None where some entry is neither.
    """
    out = sample.run(tensors).flatten()
    entries = torch.cat([tensor.flatten() for tensor in tensors])
    equal = out[:, None] == entries
    numbers = [0.0, *(value for value in sample.arguments if isinstance(value, float))]
    filled = torch.isin(out.double(), torch.tensor(numbers, dtype=torch.float64))
    if not bool((equal.any(1) | filled).all()):
        return None
    return torch.where(equal.any(1), equal.long().argmax(1), -1)


def entries(sample: Sample) -> str:
    """Where an operation's entries come from, in the words of `Row.entries`."""
    tensors = sample.drawn()
    first, *others = (origins(sample, given) for given in (tensors, sample.drawn(), sample.drawn()))
    if first is None or any(other is None or not torch.equal(first, other) for other in others):
        return "made"  # or chosen by their values
    tensors = sample.drawn()
    owners = torch.repeat_interleave(torch.tensor([tensor.numel() for tensor in tensors]))
    read = [place for place in range(len(tensors)) if bool((owners[first[first >= 0]] == place).any())]
    if len(read) != 1 or bool((first < 0).any()) or len(first.unique()) != len(first):
        return "picked"
    (source,) = (tensors[place] for place in read)
    if source.numel() != len(first):
        return "picked"
    same = sample.run(tensors).shape == source.shape and bool((first == (owners == read[0]).nonzero()[:, 0]).all())
    return "same" if same else "rearranged"


def reach(sample: Sample, place: int) -> Tensor:
    """Whether each entry of the output depends on each entry of one of its tensors (of the first image), `[*output,
    *input]`.
    """
    tensors = sample.drawn()
    before, value = sample.run(tensors), tensors[place]
    depends = torch.zeros(before.numel(), value.numel(), dtype=torch.bool)
    for entry in range(value.numel() // (IMAGES if sample.given[place][1].varies else 1)):
        for changed in (3 * value.flatten()[entry] + 5, -3 * value.flatten()[entry] - 5):
            if sample.given[place][1].positive and changed <= 0:
                continue
            other = value.clone()
            other.view(-1)[entry] = changed
            after = sample.run([*tensors[:place], other, *tensors[place + 1 :]])
            depends[:, entry] |= ((after - before).abs() > 1e-12).flatten()
    return depends.view(*before.shape, *value.shape)


def lends(sample: Sample, place: int) -> bool:
    """Whether the values of one of its tensors make no difference."""
    tensors = sample.drawn()
    others = [sample.given[place][1].drawn() if at == place else tensor for at, tensor in enumerate(tensors)]
    return torch.equal(sample.run(tensors), sample.run(others))


def apart(depends: Tensor, rank: int) -> set[int]:
    """The axes along which an output's entries depend on entries of other places, where it is as long as they are."""
    inner = depends.dim() - rank
    places = depends.nonzero()
    out, read = places[:, :rank], places[:, rank:]
    out = out[:, rank - inner :]
    alone = torch.tensor(depends.shape[rank:]) == 1
    return {dim for dim in range(inner) if not alone[dim] and bool((out[:, dim] != read[:, dim]).any())}


def windowed(depends: Tensor, rank: int) -> bool:
    """Whether places of the output read ranges of places that move on with them, images apart."""
    if depends.dim() != 2 * rank or 0 in apart(depends, rank):
        return False
    moves = False
    for dim in range(2, rank):
        reads = depends.any([axis for axis in range(2 * rank) if axis not in (dim, rank + dim)])
        starts, ends = zip(*((int(row.nonzero().min()), int(row.nonzero().max())) for row in reads), strict=True)
        if list(starts) != sorted(starts) or list(ends) != sorted(ends):
            return False
        moves |= starts[0] < starts[-1] or ends[0] < ends[-1]
    return moves


def affine(run: Callable[[list[Tensor]], Tensor], tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether a function of tensors takes mixtures to mixtures."""
    first, second = run(list(tensors)).double(), run(list(others)).double()
    for share in (0.3, 0.8):
        mixed = run([share * one + (1 - share) * other for one, other in zip(tensors, others, strict=True)]).double()
        error = (mixed - share * first - (1 - share) * second).abs().max()
        if not error < 1e-9 * max(1.0, float(first.abs().max())):
            return False
    return True


def affine_in(sample: Sample, places: Sequence[int], inverse: Sequence[int] = ()) -> bool:
    """Whether an operation is affine in some of its tensors together (in one over some), the others fixed."""
    tensors, others = sample.drawn(), sample.drawn()

    def run(some: list[Tensor]) -> Tensor:
        given = list(tensors)
        for place, tensor in zip(places, some, strict=True):
            given[place] = tensor.reciprocal() if place in inverse else tensor
        return sample.run(given)

    return affine(run, [tensors[place] for place in places], [others[place] for place in places])


def multiplies(sample: Sample, first: int, second: int, inverse: Sequence[int] = ()) -> bool:
    """Whether it multiplies one tensor by another: it is affine in each, and not in both."""
    each = affine_in(sample, [first], inverse) and affine_in(sample, [second], inverse)
    return each and not affine_in(sample, [first, second], inverse)


def sums(sample: Sample) -> bool:
    """Whether it sums products of two of its tensors over an axis."""
    for first, second in combinations(range(len(sample.given)), 2):
        if multiplies(sample, first, second):
            rank = sample.run(sample.drawn()).dim()
            return bool((reach(sample, first).flatten(rank).sum(-1) > 1).any())
    return False


def check_facts(row: Row, sample: Sample) -> None:
    """Holds a row to what its operation does.

    Raises:
        AssertionError: Names the fact.
    """
    torch.manual_seed(0)
    schema = {("input" if given.name == "self" else given.name) for given in sample.overload._schema.arguments}
    named = {*row.product, *row.held, *row.fixed, *(row.affine or ()), *(row.attends or ()), row.like, row.divides} - {
        ""
    }
    assert named <= schema, f"no arguments {named - schema}"
    assert row.linear == (row.reads is not None), "kind"
    assert row.entries == entries(sample) or row.mixes == "grid", "entries"  # a new grid, though it may repeat the old
    rank = sample.run(sample.drawn()).dim()
    lent = {sample.given[place][0] for place in sample.varying if lends(sample, place)}
    assert lent == {row.like} - {""}, "like"

    read = [] if row.moves else [reach(sample, place) for place in sample.varying]
    ways = [apart(depends, rank) if depends.dim() <= 2 * rank else {-1} for depends in read]
    if row.moves:
        assert row.mixes == "", "mixes: it moves entries"
    elif row.mixes == "":
        places = [way for place, way in zip(sample.varying, ways, strict=True) if sample.given[place][0] != "source"]
        assert not any(places), "mixes: it is not elementwise"  # beside what an index_add brings from elsewhere
    elif row.mixes == "last":
        assert all(way <= {rank - 1} for way in ways) and any(ways), "mixes: not the last axis alone"
    elif row.mixes == "axes":
        assert any(way - {rank - 1} for way in ways) or (rank == 2 and any(ways)), "mixes: the last axis at most"
    else:
        assert ways[0] and windowed(read[0], rank), "mixes: places do not move on in windows"
        assert row.mixes == "window" or 1 not in ways[0], "mixes: channels are mixed"

    places = {name: sample.places(name) for name in schema}
    varied = sorted({*sample.varying, *(place for name in (*row.product, *row.held) for place in places[name])})
    assert (row.kind == "linear") == affine_in(sample, varied), "kind"
    if row.held:
        rest = [place for place in varied if sample.given[place][0] not in row.held]
        assert affine_in(sample, rest), "held"
    factors = [place for name in row.product for place in places[name]]
    inverse = places.get(row.divides, [])
    pairs = list(combinations(factors, 2))
    assert not row.product or (pairs and all(multiplies(sample, *pair, inverse) for pair in pairs)), "product"
    assert set(inverse) <= set(factors) and not any(affine_in(sample, [place]) for place in inverse), "divides"
    assert row.contracts == sums(sample), "contracts"
    if not row.product and not row.affine and not row.held:
        assert not any(multiplies(sample, *pair) for pair in combinations(sample.varying, 2)), "product: it multiplies"
    if row.kind == "frozen" or row.norm:
        assert row.norm == keeps_scale(sample), "norm"
    assert row.softmax == weighs(sample), "softmax"
    if row.affine:
        check_affine(row.affine, sample)
        (value,), (weight,) = places[row.affine[0]], places[row.affine[1]]
        mixes = row.contracts and row.mixes == "last"
        rows = sample.given[weight][1].shape[0] if mixes else None
        assert row.inputs_first == (mixes and rows == sample.given[value][1].shape[-1]), "inputs_first"
    if row.attends:
        queries, keys, values = (places[name] for name in row.attends)
        assert affine_in(sample, values) and not affine_in(sample, queries) and not affine_in(sample, keys), "attends"
        assert {*row.attends[:2]} <= {*row.held} and row.attends[2] not in row.held, "attends"
    if row.statistic:
        check_statistic(row, sample)


def check_statistic(row: Row, sample: Sample) -> None:
    """What gives a norm's statistic gives the norm as well; the statistic shrinks as the input grows."""
    assert row.norm and row.statistic
    tensors, names = sample.drawn(), [argument.name for argument in sample.overload._schema.arguments]
    (place,) = sample.places("input")

    def both(scale: float) -> tuple[Tensor, Tensor]:
        supply = iter(tensor * scale if at == place else tensor for at, tensor in enumerate(tensors))
        given = [_swapped(value, supply) for value in sample.arguments]
        given += [argument.default_value for argument in sample.overload._schema.arguments[len(given) :]]
        return row.statistic(**dict(zip(names, given, strict=True)))  # type: ignore[misc]

    output, statistic = both(1.0)
    assert torch.allclose(output, sample.run(tensors)), "statistic: not of this norm"
    assert torch.allclose(both(10.0)[1] * 10, statistic, rtol=1e-3), "statistic: not one over a deviation"


def keeps_scale(sample: Sample) -> bool:
    """Whether its output stays the same when its input is scaled, and what it was trained on with it."""
    tensors = sample.drawn()
    powers = {"running_mean": 1, "running_var": 2}
    scaled = [
        tensor * 1.7 ** (1 if place == sample.varying[0] else powers.get(name, 0))
        for place, ((name, _), tensor) in enumerate(zip(sample.given, tensors, strict=True))
    ]
    return torch.allclose(sample.run(scaled), sample.run(tensors), rtol=1e-3, atol=1e-3)


def weighs(sample: Sample) -> bool:
    """Whether its output is shares of one along some axis."""
    out = sample.run(sample.drawn()).double()
    return bool((out >= 0).all()) and any(bool((out.sum(dim) - 1).abs().max() < 1e-9) for dim in range(1, out.dim()))


def check_affine(names: tuple[str, str, str], sample: Sample) -> None:
    """`f(input, weight, bias)` is `bias` where the weight is zero, and the bias is only added."""
    (value,), (weight,), (bias,) = (sample.places(name) for name in names)
    tensors, others = sample.drawn(), sample.drawn()

    def run(**changed: Tensor) -> Tensor:
        places = {"value": value, "weight": weight, "bias": bias}
        given = list(tensors)
        for name, tensor in changed.items():
            given[places[name]] = tensor
        return sample.run(given)

    none, nothing = torch.zeros_like(tensors[weight]), torch.zeros_like(tensors[bias])
    assert value in sample.varying and not {weight, bias} & set(sample.varying), "affine"
    assert affine_in(sample, [weight]), "affine: not in the weight"
    assert torch.equal(run(weight=none), run(weight=none, value=others[value])), "affine: not by the weight alone"
    assert torch.allclose(run() - run(bias=nothing), run(weight=none)), "affine: the bias is not only added"


@pytest.mark.parametrize("sample", SAMPLES, ids=ids(SAMPLES))
def test_a_row_says_what_its_operation_does(sample: Sample) -> None:
    check_facts(TABLE[sample.operation], sample)


def test_every_row_names_an_operation() -> None:
    assert not [name for name in SHIPPED if not hasattr(torch.ops.aten, name.removeprefix("aten."))]


# -- what is asked of the table ----------------------------------------------------------------------------------------


class Run(nn.Module):
    """An operation on a trunk; other tensors that vary are made of it."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        self.weights = nn.ParameterList(
            nn.Parameter(tensor.drawn(), requires_grad=False) for _, tensor in sample.given if not tensor.varies
        )
        self.constants = [value for value in sample.arguments if isinstance(value, Tensor)]

    def forward(self, value: Tensor) -> Tensor:
        weights, first, tensors = iter(self.weights), True, []
        for _, tensor in self.sample.given:
            made = self.other(value, tensor.shape, first) if tensor.varies else next(weights)
            tensors.append(made.square() + 0.1 if tensor.varies and tensor.positive else made)
            first = first and not tensor.varies
        return self.sample.run(tensors)

    def other(self, value: Tensor, shape: tuple[int, ...], first: bool) -> Tensor:
        """The trunk, the trunk turned round, or as many of its entries as it takes."""
        if tuple(value.shape[1:]) == shape:
            return value if first else value.flip(1)
        count, entries = math.prod(shape), value.flatten(1)
        return entries.repeat(1, -(-count // entries.shape[1]))[:, :count].reshape(-1, *shape)


class Read(nn.Module):
    """What an operation makes, as three numbers for each image."""

    def __init__(self, run: Run, trunk: Tensor) -> None:
        super().__init__()
        longer, shorter = (run(trunk[:count]).shape for count in (3, 2))
        self.images = next(dim for dim in range(len(longer)) if longer[dim] != shorter[dim])
        self.layer = nn.Linear(math.prod(longer) // 3, 3, dtype=torch.float64)

    def forward(self, value: Tensor) -> Tensor:
        value = value.movedim(self.images, 0) if self.images else value
        return self.layer(value.to(self.layer.weight.dtype).flatten(1))


class Network(nn.Module):
    """A trunk of every shape that samples take, each with a branch, and the samples side by side on them.

    Maps and tokens lie on the image: 4 x 6 pixels, and 2 x 3 patches. Trunks of other shapes lie nowhere.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shapes = sorted({sample.given[sample.varying[0]][1].shape for sample in samples})
        self.place = [self.shapes.index(sample.given[sample.varying[0]][1].shape) for sample in samples]
        self.pixels, self.patches = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(3, 4, 2, 2).double()
        self.entries = nn.ModuleList(nn.Linear(72, math.prod(shape)).double() for shape in self.shapes)
        self.enter = nn.ModuleList(nn.Linear(shape[-1], 3).double() for shape in self.shapes)
        self.leave = nn.ModuleList(nn.Linear(3, shape[-1]).double() for shape in self.shapes)
        self.runs = nn.ModuleList(Run(sample) for sample in samples)
        trunks = self.trunks(torch.randn(3, 3, 4, 6).double())
        self.reads = nn.ModuleList(Read(run, trunks[place]) for run, place in zip(self.runs, self.place, strict=True))

    def trunks(self, images: Tensor) -> list[Tensor]:
        trunks = []
        for shape, entry, enter, leave in zip(self.shapes, self.entries, self.enter, self.leave, strict=True):
            if shape == MAP:
                value = self.pixels(images)
            elif shape == TOKENS:
                value = self.patches(images).flatten(2).transpose(1, 2).contiguous()
            else:
                value = entry(images.flatten(1)).reshape(-1, *shape)
            trunks.append(value + leave(F.gelu(enter(value))))
        return trunks

    def forward(self, images: Tensor) -> Tensor:
        trunks = self.trunks(images)
        return torch.cat(
            [read(run(trunks[place])) for run, read, place in zip(self.runs, self.reads, self.place, strict=True)], 1
        )


class Driven:
    """Samples, captured side by side."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.network = Network(samples).eval().requires_grad_(False)
        self.graph: Graph = capture(self.network, torch.randn(2, 3, 4, 6).double())
        self.paths = Paths(self.graph)

    @cached_property
    def _nodes(self) -> dict[str, list[fx.Node]]:
        nodes: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            nodes[self.graph.module(node)].append(node)
        return nodes

    def node(self, place: int) -> fx.Node:
        """A sample's operation in the graph."""
        name = self.samples[place].operation
        nodes = [
            node for node in self._nodes[f"runs.{place}"] if operation(node) == name and hasattr(node.target, "_schema")
        ]
        assert nodes, f"{name} is not in the captured graph"
        return nodes[-1]

    @cache  # noqa: B019  (it lives as long as the tests)
    def sent(self, trunk: fx.Node) -> tuple[dict[fx.Node, Tensor], list[fx.Node]]:
        """Where the labels of a trunk come, and what reads them and does not merely move them."""
        labels = torch.arange(1, math.prod(lengths(trunk, IMAGES)) + 1, dtype=torch.float64)
        return sent(self.graph, trunk, labels.view(lengths(trunk, IMAGES)), IMAGES)

    def trunk(self, place: int) -> fx.Node:
        """The residual addition that a sample runs on."""
        values = [value for value in self.paths.residuals if extents(value) == self._shape(place)]
        return values[0]

    def _shape(self, place: int) -> tuple[int, ...]:
        return self.network.shapes[self.network.place[place]]


def extents(node: fx.Node) -> tuple[int, ...]:
    return tuple(lengths(node, 1)[1:])


def tensors_of(node: fx.Node) -> list[tuple[str, fx.Node]]:
    """The tensors that an operation is given, by name."""
    named = []
    for name, value in arguments(node).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        named += [(name, part) for part in values if isinstance(part, fx.Node) and isinstance(part.meta["val"], Tensor)]
    return named


def check_driven(driven: Driven, place: int, row: Row) -> None:
    """Drives one sample through what asks its row, given what is true of it.

    Raises:
        AssertionError: Something that asks comes to another answer than the operation gives.
    """
    graph, paths, node = driven.graph, driven.paths, driven.node(place)
    varying = [(name, value) for name, value in tensors_of(node) if graph.image_dependent(value)]

    # paths
    followed, live = paths.follows(node), paths.live(node)
    factors = [value for name, value in varying if name in row.product]
    if row.linear:
        expected = [value for name, value in varying if name not in (*row.held, row.like)]
        if len(factors) > 1 and factors[0] is not factors[1]:
            assert live is None or live in factors
            expected = [value for value in expected if value not in factors or value is live]
        assert set(followed) == set(expected), "follows"
    else:
        assert not followed, "follows"
    assert paths.factors(node) == tuple(factors), "factors"
    assert not paths.residuals.get(node), "residuals"

    # origins
    if isinstance(node.meta["val"], Tensor):
        origin = paths.origins.of(node)
        assert origin is None or list(origin.channels.shape) == lengths(node, 1) == list(origin.positions.shape)
        told = row.moves or row.elementwise or row.mixes == "last" or (row.contracts and len(varying) == 1)
        assert origin is not None or not told, "origins"

    # labels
    trunk = driven.trunk(place)
    reached, readers = driven.sent(trunk)
    follows = any(value in reached for name, value in varying if name != row.like)
    assert (node in reached) == (row.moves and follows), "sent"
    if isinstance(node.meta["val"], Tensor):
        assert (node in readers) == (not row.moves and follows), "sent"
    if row.moves:
        check_moved(driven, place)
    if isinstance(node.meta["val"], Tensor) and cells(graph, trunk, ()) is not None:
        check_cells(driven, place, row)


def check_moved(driven: Driven, place: int) -> None:
    """Labels come out where the values come out, and so do places in the image."""
    graph, node, sample = driven.graph, driven.node(place), driven.samples[place]
    came = origins(sample, sample.drawn())
    assert came is not None
    inputs = [value for _, value in tensors_of(node) if value.meta["val"].is_floating_point()]
    sizes = [math.prod(lengths(value, IMAGES)) for value in inputs]
    numbers = torch.arange(1, sum(sizes) + 1, dtype=torch.float64).split(sizes)
    pairs = list(zip(inputs, numbers, strict=True))
    labels = {value: given.view(lengths(value, IMAGES)) for value, given in pairs if graph.image_dependent(value)}
    wanted = torch.cat([given if value in labels else torch.full_like(given, OTHER) for value, given in pairs])
    wanted = torch.where(came < 0, FILLED, wanted[came.clamp_min(0)])
    assert torch.equal(moved(graph, node, labels, IMAGES, OTHER).flatten(), wanted), "moved"


def check_cells(driven: Driven, place: int, row: Row) -> None:
    """Entries lie in the image where the entries lie that they are made of."""
    graph, node, trunk, sample = driven.graph, driven.node(place), driven.trunk(place), driven.samples[place]
    after = cells(graph, node, ())
    lies = row.moves or row.elementwise or row.norm or row.mixes == "last"
    lies = lies or (row.mixes in ("window", "grid") and len(extents(node)) == 3)
    if row.moves:
        came = origins(sample, sample.drawn())
        assert came is not None
        before: list[int] = []
        for _, value in tensors_of(node):
            if value.meta["val"].is_floating_point():
                grid, count = cells(graph, value, ()), math.prod(lengths(value, 1))
                before += (grid.cells if grid else (PADDING,) * count) * IMAGES
        came = came.view(lengths(node, IMAGES)).select(batch_axis(node), 0).flatten()
        expected = [before[int(at)] if at >= 0 else PADDING for at in came]
        places = after.cells if after else [PADDING] * len(expected)
        assert [cell if cell >= 0 else PADDING for cell in places] == expected, "cells"
    elif lies:
        assert after is not None, "cells: lost"
        if extents(node) == extents(trunk):
            assert after.cells == cells(graph, trunk, ()).cells, "cells"


def batch_axis(node: fx.Node) -> int:
    longer, shorter = lengths(node, 3), lengths(node, 2)
    return next(dim for dim in range(len(longer)) if longer[dim] != shorter[dim])


CAPTURED = [sample for sample in SAMPLES if sample.captured]


@cache
def driven() -> Driven:
    return Driven(CAPTURED)


@pytest.mark.parametrize("place", range(len(CAPTURED)), ids=ids(CAPTURED))
@pytest.mark.xdist_group("table")
def test_a_row_is_true_for_all_that_asks_it(place: int) -> None:
    row = TABLE[CAPTURED[place].operation]
    assert driven().paths.row(driven().node(place)) == row
    check_driven(driven(), place, row)


# -- facts that take a network of their own ----------------------------------------------------------------------------


def named(network: nn.Module) -> Callable[[Tensor], list[str]]:
    names = {tensor.data_ptr(): name for name, tensor in network.state_dict().items()}
    return lambda tensor: [names[tensor.data_ptr()]]


def test_the_walk_and_surgery_take_every_row() -> None:
    walked = walk(driven().graph)
    places, refused = outlets(walked, known(walked), named(driven().network))
    written = {str(component) for outlet in places for component in outlet.components}
    assert written == {f"leave.{place}.mlp" for place in range(len(driven().network.shapes))}
    assert all(component.reason for component in refused)
    passed = {row.operation for _, row in walked.fired}
    stopped = {"aten.bmm", "aten.baddbmm", "aten.matmul"}  # of two values that vary, and neither is a gate
    assert passed >= {sample.operation for sample in CAPTURED if TABLE[sample.operation].linear} - stopped


class Branches(nn.Module):
    """`x + operation(gelu(x))` for every operation that has parameters of its own, side by side."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.runs = nn.ModuleList(Run(sample) for sample in samples)
        self.shapes = [sample.given[sample.varying[0]][1].shape for sample in samples]
        outs = [run(torch.randn(1, *shape).double()).numel() for run, shape in zip(self.runs, self.shapes, strict=True)]
        widths = [max(out, math.prod(shape)) for out, shape in zip(outs, self.shapes, strict=True)]
        self.entries = nn.ModuleList(nn.Linear(12, width).double() for width in widths)

    def forward(self, images: Tensor) -> Tensor:
        outs = []
        for entry, run, shape in zip(self.entries, self.runs, self.shapes, strict=True):
            value = entry(images.flatten(1))
            out = run(F.gelu(value[:, : math.prod(shape)].reshape(-1, *shape))).flatten(1)
            outs.append(value[:, : out.shape[1]] + out)
        return torch.cat(outs, 1)


def check_outlets(samples: Sequence[Sample]) -> None:
    """Behind an MLP, an operation with weights and a bias is where the MLP is written.

    Raises:
        AssertionError: Some is not.
    """
    network = Branches(samples).eval()
    walked = walk(capture(network, torch.randn(2, 3, 2, 2).double()))
    places, _ = outlets(walked, known(walked), named(network))
    assert {outlet.module for outlet in places} == {f"runs.{place}" for place in range(len(samples))}, "outlets"


WEIGHTED = [sample for sample in SAMPLES if TABLE[sample.operation].affine and TABLE[sample.operation].contracts]


def test_an_operation_with_weights_and_a_bias_is_an_outlet() -> None:
    check_outlets(WEIGHTED)


class Masked(nn.Module):
    """Operations given by the image what must be the same for every image, and a maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(12, 24)

    def forward(self, images: Tensor) -> Tensor:
        x = self.entry(images.flatten(1)).view(-1, 6, 4)
        mask = x > 0
        return torch.cat([torch.where(mask, x, x.flip(1)), x.masked_fill(mask, 0.5), x.amax(2, keepdim=True)], 2).sum(1)


def test_what_must_be_fixed_and_is_not_is_no_way_on() -> None:
    graph = capture(Masked().eval(), torch.randn(2, 3, 2, 2))
    rows = {operation(node): Paths(graph).row(node) for node in graph.nodes}
    stopped = {name for name, row in rows.items() if name in TABLE and TABLE[name].linear and not row.linear}
    assert stopped == {name for name, row in TABLE.items() if row.fixed or row.pools}
    assert all(not rows[name].moves and rows[name].reads is None for name in stopped)


# -- the tests see what is wrong ---------------------------------------------------------------------------------------


def first(name: str) -> Sample:
    return next(sample for sample in SAMPLES if sample.operation == f"aten.{name}")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("swapdims", {"entries": "made", "mixes": "axes"}),
        ("flip", {"entries": "picked"}),
        ("reshape", {"entries": "same"}),
        ("cat", {"entries": "made"}),
        ("relu6", {"mixes": "axes"}),
        ("relu6", {"entries": "same"}),
        ("gelu", {"kind": "linear"}),
        ("gelu", {"softmax": True}),
        ("neg", {"kind": "source", "reads": None}),
        ("softmax", {"mixes": ""}),
        ("softmax", {"softmax": False}),
        ("cumsum", {"mixes": ""}),
        ("cumsum", {"mixes": "last"}),
        ("linear", {"mixes": "axes"}),
        ("linear", {"contracts": False}),
        ("linear", {"affine": ("input", "bias", "weight")}),
        ("conv2d", {"mixes": "last"}),
        ("group_norm", {"mixes": "window"}),
        ("group_norm", {"norm": False}),
        ("rms_norm", {"norm": False}),
        ("addcmul", {"product": ("input", "tensor1")}),
        ("addcmul", {"product": ()}),
        ("mul", {"contracts": True}),
        ("mul", {"norm": True}),
        ("div", {"divides": ""}),
        ("lerp", {"held": ()}),
        ("type_as", {"like": ""}),
        ("add", {"like": "other"}),
        ("where", {"fixed": ("mask",)}),
        ("scaled_dot_product_attention", {"held": ("query",)}),
        ("scaled_dot_product_attention", {"attends": ("value", "key", "query")}),
        ("addmm", {"inputs_first": False}),
        ("linear", {"inputs_first": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_fact_is_seen(name: str, facts: dict[str, object]) -> None:
    sample = first(name)
    check_facts(TABLE[sample.operation], sample)
    with pytest.raises(AssertionError):
        check_facts(replace(TABLE[sample.operation], **facts), sample)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("swapdims", {"entries": "made", "mixes": "axes"}),  # the tokens of a model would not be placed any more
        ("relu6", {"mixes": "axes"}),
        ("lerp", {"held": ()}),
        ("type_as", {"like": ""}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_fact_is_seen_by_what_asks_it(
    name: str, facts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = first(name)
    row, right, other = TABLE[sample.operation], Driven([sample]), Driven([sample])
    check_driven(right, 0, row)
    monkeypatch.setitem(TABLE, sample.operation, replace(row, **facts))
    other.paths = Paths(other.graph)
    with pytest.raises(AssertionError):
        check_driven(other, 0, row)


def test_a_wrong_fact_is_seen_by_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = first("linear")
    check_outlets([sample])
    monkeypatch.setitem(TABLE, sample.operation, replace(TABLE[sample.operation], affine=None))
    with pytest.raises(AssertionError):
        check_outlets([sample])


# -- one table ---------------------------------------------------------------------------------------------------------

NAMED = {
    "graph/counts.py": "makes the number of images a node",
    "graph/tidy.py": "writes operations as others before anything asks the table",
    "structure/regions.py": "writes the pooling of regions in place of the model's own",
}
"""Files outside operations/ that may name an operation, and why."""


def test_operations_are_named_in_the_table_alone() -> None:
    naming = {}
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        lines = [line.strip() for line in path.read_text().splitlines() if re.search(r"(?<![`\w])(ops\.)?aten\.", line)]
        if lines and not file.startswith("operations/"):
            naming[file] = lines
    assert set(naming) == set(NAMED), (
        f"operations are named outside of the table, in {set(naming) - set(NAMED) or 'no file'}: "
        f"{[line for file in set(naming) - set(NAMED) for line in naming[file]]}. Ask a fact of the row; if there is "
        "none that says it, add one to Row."
    )
