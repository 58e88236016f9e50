"""Networks of factors multiplied in the order that was found, against one einsum of them all."""

from __future__ import annotations

import random
from itertools import count

import pytest
import torch
from torch import Tensor, fx

from unweave.adjoint.operand import BATCH, Axis, Constant, Index, Indices, Operand, Runtime
from unweave.decomposition.contraction import Contractions, Value, arranged, multiplied
from unweave.decomposition.order import EXACT, Network, best_order

IMAGES = 3


def size_of(index: Index) -> int:
    return IMAGES if index is BATCH else index.size


def network(rng: random.Random, factors: int, repeats: bool = False) -> tuple[list[Operand], list[Tensor], Indices]:
    """Random factors, some of them constant, that share indices; and what to keep of them."""
    pool = [BATCH, *(Index(rng.choice((2, 3, 4))) for _ in range(max(3, factors // 2 + 1)))]
    operands, tensors = [], []
    for place in range(factors):
        fixed = rng.random() < 0.5
        own = rng.sample(pool[1:] if fixed else pool, rng.randint(1, 3))
        if repeats and place == 0:
            own.append(own[0])
        tensor = torch.randn([size_of(index) for index in own]).double()
        if fixed:
            source: object = Constant(tuple(tensor.shape), (), lambda tensor=tensor: tensor)
        else:
            node = fx.Graph().placeholder(f"x{place}")
            source = Runtime("value", node, (node,), lambda value, _: value)
        operands.append(Operand(source, tuple(Axis((index,)) for index in own)))
        tensors.append(tensor)
    used = list(dict.fromkeys(index for operand in operands for index in operand.indices))
    return operands, tensors, tuple(rng.sample(used, rng.randint(0, min(3, len(used)))))


def whole(operands: list[Operand], tensors: list[Tensor], out: Indices) -> Tensor:
    serial = count()
    numbers: dict[Index, int] = {}
    given: list[object] = []
    for operand, tensor in zip(operands, tensors, strict=True):
        given += [tensor, [numbers.setdefault(index, next(serial)) for index in operand.indices]]
    return torch.einsum(*given, [numbers[index] for index in out])


def computed(value: Value, tensors: dict[int, Tensor]) -> Tensor:
    """What a value is, by the multiplications that it says."""
    if value.operand is not None:
        given = tensors.get(id(value.operand.source))
        if given is None:
            return value.operand.source.make()
        own = list(dict.fromkeys(value.operand.indices))
        return torch.einsum(given, [own.index(index) for index in value.operand.indices], list(range(len(own))))
    first, second = (computed(inner, tensors) for inner in value.inputs)
    product = multiplied(arranged(first, value.pairing, True), arranged(second, value.pairing, False), value.pairing)
    return product.reshape([size or IMAGES for size in value.sizes])


@pytest.mark.parametrize("seed", range(42))
def test_a_contraction_is_the_einsum_of_its_factors(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    operands, tensors, out = network(
        rng, EXACT + 3 if seed == 7 else (1, 2, 3, 4, 5, 6)[seed % 6], repeats=seed % 4 == 0
    )
    contractions = Contractions()
    value, indices = contractions.contract(operands, out)
    assert set(indices) == set(out)
    given = {id(operand.source): tensor for operand, tensor in zip(operands, tensors, strict=True)}
    ours, theirs = computed(value, given), whole(operands, tensors, indices)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max() + 1))
    assert value.constant == all(operand.constant for operand in operands)
    assert [own.number for own in contractions.values] == list(range(len(contractions.values)))
    for own in contractions.values:
        assert all(inner.number < own.number for inner in own.inputs)


def test_equal_products_are_made_once() -> None:
    operands, _, out = network(random.Random(1), 5)
    contractions = Contractions()
    first, _ = contractions.contract(operands, out)
    made = len(contractions.values)
    second, _ = contractions.contract(operands, out)
    assert first is second and len(contractions.values) == made


def cost(tree: object, network: Network) -> tuple[float, int]:
    """What an order costs by the planner's own measure, and the mask of the factors in it."""
    if isinstance(tree, int):
        return 0.0, 1 << tree
    (left, one), (right, two) = (cost(part, network) for part in tree)
    joined = one | two
    step = network.step(network.inside(one), network.inside(two), network.inside(joined), network.fixed(joined))
    return left + right + step, joined


@pytest.mark.parametrize("seed", range(32))
def test_the_order_is_never_dearer_than_left_to_right(seed: int) -> None:
    rng = random.Random(seed)
    operands, _, out = network(rng, EXACT + 3 if seed == 0 else rng.randint(2, 6))
    sets = [frozenset(operand.indices) for operand in operands]
    constants = [operand.constant for operand in operands]
    tree = best_order(sets, constants, frozenset(out))
    plain: object = 0
    for place in range(1, len(sets)):
        plain = (plain, place)
    own = Network.of(sets, constants, out)
    ours, mask = cost(tree, own)
    assert mask == (1 << len(sets)) - 1
    assert ours <= cost(plain, own)[0]


def test_tokens_are_contracted_before_channels() -> None:
    """`w[b, t] x[b, t, c] M[c, D]`: first over tokens, whatever the order they are given in."""
    tokens, channels, out = Index(196), Index(768), Index(768)
    sets = [frozenset(own) for own in ((channels, out), (BATCH, tokens, channels), (BATCH, tokens))]
    tree = best_order(sets, [True, False, False], frozenset((BATCH, out)))
    assert {frozenset(part) for part in tree if isinstance(part, tuple)} == {frozenset((1, 2))}
