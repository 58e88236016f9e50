"""Surgery: edited weights against the ablated graph, against hooks, and against each library read by a person."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import unweave
from families import FAMILIES, Family, core
from tiny import WIDTH, Attention, Mlp, Vit, pictures, ready
from unweave.components import Component
from unweave.errors import ArgumentError, NonFiniteError, UnweaveError
from unweave.models.weights import fingerprint, randomise
from unweave.surgery.edit import mean_ablated

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
FAST = [
    *(f"timm/{name}" for name in ("deit", "vit_avg", "deit_distilled", "dinov2_reg", "siglip", "vit_post_norm")),
    *(f"timm/{name}" for name in ("vit_parallel", "eva02_scale_mlp", "beit", "cait", "swin_padded", "maxvit")),
    *("open_clip/vit", "hf/dinov2_swiglu", "hf/clip", "torchvision/vit"),
]
NAMED = {family.name: family for family in FAMILIES}


def apart(ours: Tensor, expected: Tensor) -> float:
    """The largest relative distance of any image."""
    return float(((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def tiny(module: nn.Module, dtype: torch.dtype = torch.float64) -> unweave.Model:
    return unweave.Model.from_module(ready(module, dtype), input_size=(3, 16, 16))


def vit(**options: object) -> unweave.Model:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**VIT, **options})
    return unweave.Model.from_module(randomise(module).eval(), input_size=(3, 32, 32))


def exactly(*names: str):
    """Components of these names, and not the biases beside them."""
    return lambda component: str(component) in names


def some(component: Component) -> bool:
    """A head of each layer, and every other MLP and convolution."""
    return component.head == 1 or (component.kind in ("mlp", "conv") and (component.layer or 0) % 2 == 0)


def changed(model: unweave.Model, edited: unweave.Model) -> set[str]:
    before, after = model.module.state_dict(), edited.module.state_dict()
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# -- the edited checkpoint is the ablated model ------------------------------------------------------------------------


@pytest.mark.parametrize("family", [NAMED[name] for name in FAST], ids=FAST)
def test_edited_weights_are_the_ablated_model(family: Family):
    model = unweave.Model.from_module(family.make(torch.float32), input_size=(3, family.size, family.size))
    attention = next(branch for branch in family.branches if branch.heads > 1)
    others = {branch.kind: branch for branch in family.branches if branch.kind != "attn"}
    heads = {0, attention.heads - 1} if attention.heads > 2 else {1}
    at = "model." if core(model.module) is not model.module else ""
    wanted = [f"{attention.path}.head.{head}" for head in heads] + [branch.path for branch in others.values()]
    edit = mean_ablated(model, exactly(*wanted), family.images(4, torch.float32))
    assert not edit.refused
    assert {str(component) for component in edit.expressed} == set(wanted)
    edited, images = edit.apply(), 1.5 * family.images(3, torch.float32, seed=9)
    with torch.no_grad():
        before, after, ablated = model.readout(images), edited.readout(images), edit.total(images)
        assert apart(edited.module(images), after) < 1e-6
    assert apart(after, ablated) < 1e-5
    assert apart(after, before) > 1e-2
    # which weights these are is written down by hand: heads lie one after the other in the input of the projection
    weight = f"{at}{attention.weight or attention.source}.weight"
    slices = core(edited.module).state_dict()[weight.removeprefix(at)].flatten(1).chunk(attention.heads, 1)
    assert {head for head, part in enumerate(slices) if not bool(part.any())} == heads
    for branch in others.values():
        name = (branch.end or branch.source) + ".weight"
        assert not bool(core(edited.module).state_dict()[name].any())
    ends = {weight.removesuffix(".weight"), *(f"{at}{branch.end or branch.source}" for branch in others.values())}
    assert changed(model, edited) == {f"{end}.{kind}" for end in ends for kind in ("weight", "bias")} == set(edit.state)


@pytest.mark.parametrize("name", ["deit", "clip", "dinov2", "swin", "maxvit"])
def test_the_zoo_with_its_logits(name: str):
    model = unweave.load_model(f"pocket/{name}")
    edit = mean_ablated(model, some, model.example(4))
    assert not edit.refused
    edited, images = edit.apply(), model.example(7)[4:]
    with torch.no_grad():
        ablated = edit.total(images)
        assert apart(edited.readout(images), ablated) < 1e-5
        if model.classifier is not None:
            assert apart(edited.module(images), model.classifier(ablated)) < 1e-5
    assert edited.weights_hash != model.weights_hash


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [("test_convnext", {}, 64), ("vit_tiny_patch16_224", VIT, 32), ("swin_s3_tiny_224", SWIN, 32)],
)
def test_logits_of_modules_that_classify(name: str, options: dict, size: int):
    module = randomise(timm.create_model(name, num_classes=5, **options)).eval()
    model = unweave.Model.from_module(module, input_size=(3, size, size))
    edit = mean_ablated(model, some, model.example(4))
    assert edit.expressed and not edit.refused
    images, edited = model.example(6)[4:], edit.apply()
    with torch.no_grad():
        ablated = edit.total(images)
        assert apart(edited.readout(images), ablated) < 1e-5
        assert apart(edited.module(images), model.classifier(ablated)) < 1e-5
        assert apart(edited.module(images), module(images)) > 1e-3


@pytest.mark.parametrize(("readout", "average"), [("class", "readout"), ("pool", "tokens")])
@pytest.mark.parametrize("name", ["blocks.0.attn.head.3", "blocks.1.attn.head.0", "blocks.0.mlp"])
def test_one_part_of_a_tiny_model(name: str, readout: str, average: str):
    model = tiny(Vit(readout=readout))
    edit = mean_ablated(model, exactly(name), pictures(3), average=average)
    others = pictures(4, seed=2)
    assert [str(component) for component in edit.expressed] == [name]
    with torch.no_grad():
        assert apart(edit.apply().module(others), edit.total(others)) < 1e-12
        assert apart(edit.total(others), model.module(others)) > 1e-6


# -- slow twins --------------------------------------------------------------------------------------------------------


def test_a_hook_on_the_projection_says_the_same():
    model = vit()
    images, others = model.example(5), model.example(9)[5:]
    heads, width = {1: (0, 2), 2: (1,)}, VIT["embed_dim"] // VIT["num_heads"]
    seen: dict[int, Tensor] = {}
    blocks = model.module.blocks
    handles = [
        blocks[block].attn.proj.register_forward_pre_hook(lambda _, args, block=block: seen.update({block: args[0]}))
        for block in heads
    ]
    with torch.no_grad():
        model.module(images)
    [handle.remove() for handle in handles]

    def replaced(block: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
            tokens = args[0].clone()
            for head in heads[block]:
                channels = slice(head * width, (head + 1) * width)
                tokens[..., channels] = seen[block][..., channels].mean((0, 1))
            return tokens

        return hook

    handles = [blocks[block].attn.proj.register_forward_pre_hook(replaced(block)) for block in heads]
    with torch.no_grad():
        expected = model.module(others)
    [handle.remove() for handle in handles]
    names = [f"blocks.{block}.attn.head.{head}" for block, several in heads.items() for head in several]
    edit = mean_ablated(model, names, [images[:2], images[2:]], average="tokens")
    with torch.no_grad():
        assert apart(edit.apply().module(others), expected) < 1e-5
        assert apart(model.module(others), expected) > 1e-2


def test_the_decomposition_of_the_edited_model_finds_nothing_where_it_was_cut():
    model = unweave.Model.from_module(NAMED["timm/swin"].make(torch.float64), input_size=(3, 32, 32))
    images = NAMED["timm/swin"].images(3)
    cut = ["layers.1.blocks.1.attn.head.2", "layers.0.blocks.1.attn.head.0", "layers.1.blocks.0.mlp"]
    edited = mean_ablated(model, exactly(*cut), images).apply()
    contributions = unweave.plan(edited).run(images)
    sizes = dict(
        zip(map(str, contributions.components), contributions.values.norm(dim=-1).amax(0).tolist(), strict=True)
    )
    assert {name for name, size in sizes.items() if size < 1e-12} == set(cut)
    assert len(sizes) > 20


def test_a_whole_layer_is_all_of_its_heads():
    model, images = tiny(Vit()), pictures()
    whole = mean_ablated(model, lambda component: component.kind == "attn" and component.layer == 0, images)
    heads = mean_ablated(model, "blocks.0.attn.head.*", images)
    assert [len(edit.expressed) for edit in (whole, heads)] == [1, 4]
    assert whole.cuts[0].whole and heads.cuts[0].whole
    assert whole.state.keys() == heads.state.keys()
    assert all(torch.equal(tensor, heads.state[name]) for name, tensor in whole.state.items())


def test_two_heads_of_a_layer_at_once_are_one_after_the_other():
    model, images = tiny(Vit()), pictures()
    name, other = "blocks.0.attn.head.1", "blocks.0.attn.head.3"
    both = mean_ablated(model, [name, other], images, average="tokens")
    assert len(both.cuts) == 1 and len(both.expressed) == 2 and not both.cuts[0].whole
    first = mean_ablated(model, [name], images, average="tokens")
    second = mean_ablated(first.apply(), [other], images, average="tokens")
    for name, tensor in both.state.items():  # heads of a layer do not read each other, so their means are the same
        torch.testing.assert_close(second.state[name], tensor)
        assert not torch.equal(first.state[name], tensor)


class Turns(Attention):
    """Channels of the heads lie in turns."""

    def merged(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.merged(x))


class Groups(Turns):
    """The projection is a convolution in groups, over one position."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(WIDTH, 2 * WIDTH, 1, groups=2)
        self.out = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        image = self.merged(x).transpose(1, 2).unflatten(2, (2, -1))
        return self.out(self.proj(image).flatten(2).transpose(1, 2))


class Product(Turns):
    """The projection is a product of matrices, its weight the other way round, behind a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = None
        self.scale = nn.Parameter(torch.zeros(WIDTH))
        self.weight, self.bias = nn.Parameter(torch.zeros(WIDTH, WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        merged = (self.merged(x) * self.scale).reshape(-1, WIDTH)
        return torch.addmm(self.bias, merged, self.weight).reshape(x.shape)


class Packed(Turns):
    """The projection is a slice of a larger weight."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = None
        self.weight, self.bias = nn.Parameter(torch.zeros(WIDTH, 3 * WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.merged(x), self.weight[:, WIDTH : 2 * WIDTH], self.bias)


@pytest.mark.parametrize("part", [Turns, Groups, Product, Packed])
def test_however_the_projection_is_written(part: type):
    model = tiny(Plain(part(), True))
    images, others = pictures(5), pictures(3, seed=4)
    wanted = ["part.head.1", "part.head.2"]
    contributions = unweave.plan(model).run(torch.cat([images, others]))
    columns = [[str(component) for component in contributions.components].index(name) for name in wanted]
    values = contributions.values[:, columns]
    direct = contributions.representation[5:] + (values[:5].mean(0) - values[5:]).sum(
        1
    )  # nothing but a linear readout reads it
    edit = mean_ablated(model, exactly(*wanted), images)
    with torch.no_grad():
        assert apart(edit.total(others), direct) < 1e-10
        assert apart(edit.apply().module(others), direct) < 1e-10
    weight = next(tensor for name, tensor in edit.state.items() if name.endswith("weight"))
    assert int((weight == 0).sum()) == weight.numel() // (6 if part is Packed else 2)


def test_a_gate_made_of_what_the_branch_writes_is_constant_with_it():
    model = tiny(Plain(Gated(False), True))
    edit = mean_ablated(model, lambda component: component.kind == "mlp", pictures())
    others = pictures(3, seed=4)
    with torch.no_grad():
        assert apart(edit.apply().module(others), edit.total(others)) < 1e-12
    assert len(edit.expressed) == 1


class Normalised(Mlp):
    """The last layer has no bias, the batch norm behind it has; its output is laid out like the layer's (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2, self.bn = nn.Linear(6, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


def test_a_norm_that_ends_the_branch_gets_the_constant():
    model = tiny(Plain(Normalised(), True))
    edit = mean_ablated(model, lambda component: component.kind == "mlp", pictures())
    assert set(edit.state) == {"part.bn.weight", "part.bn.bias"}
    others = pictures(3, seed=4)
    with torch.no_grad():
        assert apart(edit.apply().module(others), edit.total(others)) < 1e-12
        assert apart(edit.total(others), model.module(others)) > 1e-3


# -- means -------------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Patches and a branch that nothing reads but a linear readout: the first token, or the mean."""

    def __init__(self, part: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.embed, self.norm, self.part, self.read = (
            nn.Conv2d(3, WIDTH, 8, 8),
            nn.LayerNorm(WIDTH),
            part,
            nn.Linear(WIDTH, 5),
        )
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = x + self.part(self.norm(x))
        return self.read(x.mean(1) if self.pooled else x[:, 0])


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("part", "name"), [(Attention, "part.head.2"), (Mlp, "part")])
def test_direct_and_total_ablation_coincide_where_nothing_reads_the_component(part: type, name: str, pooled: bool):
    model = tiny(Plain(part(), pooled))
    images, others = pictures(5), pictures(3, seed=4)
    plan = unweave.plan(model)
    column = [str(component) for component in plan.components].index(name)
    mean, contributions = plan.run(images).values[:, column].mean(0), plan.run(others)
    direct = contributions.representation - contributions.values[:, column] + mean
    edited = mean_ablated(model, exactly(name), images).apply()
    with torch.no_grad():
        assert apart(edited.module(others), direct) < 1e-10
        assert apart(direct, contributions.representation) > 1e-2
    if not pooled:  # of a token that the representation does not read, the mean is another
        with torch.no_grad():
            assert apart(mean_ablated(model, [name], images, average="tokens").apply().module(others), direct) > 1e-3


def test_where_later_layers_read_the_component_the_two_differ():
    model = tiny(Vit())
    images = pictures(5)
    contributions = unweave.plan(model).run(images)
    column = [str(component) for component in contributions.components].index("blocks.0.attn.head.1")
    direct = contributions.representation - contributions.values[:, column] + contributions.values[:, column].mean(0)
    with torch.no_grad():
        assert apart(mean_ablated(model, ["blocks.0.attn.head.1"], images).apply().module(images), direct) > 1e-2


@pytest.mark.parametrize("name", ["timm/deit", "timm/vit_avg", "timm/swin"])
def test_the_readout_mean_keeps_the_mean_direct_contribution(name: str):
    """Its contribution is written out: its projection through the last norm, with the recorded statistics."""
    family = NAMED[name]
    model = unweave.Model.from_module(family.make(), input_size=(3, family.size, family.size))
    images = family.images(4)
    component = [component for component in unweave.plan(model).components if component.kind == "head"][-1]
    plan = unweave.plan(model, select=[component])
    edit = mean_ablated(model, [component], images)
    (cut,), module = edit.cuts, core(model.module)
    norm = getattr(module, "norm", None)
    norm = norm if isinstance(norm, nn.LayerNorm) else module.fc_norm
    entered: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        model.module(images)
    handle.remove()
    rstd = (entered[0].var(-1, unbiased=False) + norm.eps).rsqrt()
    rstd = rstd[:, 0] if name == "timm/deit" else rstd.reshape(len(images), -1).mean(1)
    weight = module.state_dict()[cut.weight.removeprefix("model.")]
    width = weight.shape[1] // (component.head + 1)  # it is the last head
    written = weight[:, -width:] @ cut.mean[-width:]
    constant = rstd[:, None] * (written - written.mean()) * norm.weight
    torch.testing.assert_close(constant.mean(0), plan.run(images).values[:, 0].mean(0))


def test_tokens_are_those_of_the_residual_stream_not_of_padded_windows():
    family = NAMED["timm/swin_padded"]
    model = unweave.Model.from_module(family.make(), input_size=(3, family.size, family.size))
    images, written = family.images(2), []
    handle = (
        core(model.module).layers[0].blocks[1].drop_path1.register_forward_hook(lambda *given: written.append(given[2]))
    )
    with torch.no_grad():
        model.module(images)
    handle.remove()
    edit = mean_ablated(model, ["layers.0.blocks.1.attn"], images, average="tokens")
    bias = edit.state[next(name for name in edit.state if name.endswith("proj.bias"))]
    torch.testing.assert_close(bias, written[0].flatten(0, -2).mean(0))


def test_batches_and_their_order_do_not_matter():
    model, images, wanted = tiny(Vit()), pictures(5), ["blocks.1.attn.head.0", "blocks.0.mlp"]
    counts: list[int] = []
    once = mean_ablated(model, wanted, images)
    several = mean_ablated(model, wanted, (images[part] for part in ([4, 2], [0], [], [1, 3])), on_images=counts.append)
    assert counts == [2, 3, 5] and once.images == several.images == 5
    for name, tensor in once.state.items():
        torch.testing.assert_close(several.state[name], tensor)


# -- what stays as it is -----------------------------------------------------------------------------------------------


def test_the_model_that_was_given_is_untouched_and_the_copy_shares_nothing():
    model = vit()
    before = fingerprint(model.module)
    edit = mean_ablated(model, ["blocks.2.mlp", "blocks.1.attn.head.1"], model.example(3))
    edited = edit.apply()
    assert fingerprint(model.module) == before
    kept, copied = ({tensor.data_ptr() for tensor in each.module.state_dict().values()} for each in (model, edited))
    assert not kept & copied
    inner = {tensor.data_ptr() for tensor in edited.readout.state_dict().values()}
    assert inner <= copied
    with torch.no_grad():
        for parameter in edited.module.parameters():
            parameter.zero_()
    assert fingerprint(model.module) == before


def test_editing_again_changes_nothing():
    model = vit()
    wanted, images = ["blocks.2.mlp", "blocks.1.attn.head.1", "blocks.0.attn"], model.example(3)
    first = mean_ablated(model, wanted, images)
    again = mean_ablated(first.apply(), wanted, images)
    assert again.state.keys() == first.state.keys()
    for name, tensor in again.state.items():
        torch.testing.assert_close(tensor, first.state[name], rtol=1e-6, atol=1e-7)


# -- what cannot be expressed ------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """What the branch writes is multiplied by a gate behind its last layer, which may see more of the image."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.mlp, self.gate, self.outside = Mlp(), nn.Linear(WIDTH, WIDTH), outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        seen = y.mean(1, keepdim=True)
        return y * self.gate(seen + x.mean(1, keepdim=True) if self.outside else seen).sigmoid()


class Normed(Attention):
    """Heads go through a norm before the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(self.inner(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def _no_bias(module: nn.Module, path: str) -> nn.Module:
    module.get_submodule(path).bias = None
    return module


def _shared(vit: Vit) -> Vit:
    vit.blocks[1].mlp.fc2 = vit.blocks[0].mlp.fc2
    return vit


def _tied(vit: Vit) -> Vit:
    vit.also = nn.Linear(6, WIDTH, bias=False)
    vit.also.weight = vit.blocks[0].mlp.fc2.weight
    return vit


@pytest.mark.parametrize(
    ("make", "wanted", "reason"),
    [
        (lambda: _no_bias(Vit(), "blocks.0.attn.proj"), "blocks.0.attn.head.1", r"blocks\.0\.attn\.proj has no bias"),
        (lambda: _no_bias(Vit(), "blocks.0.mlp.fc2"), exactly("blocks.0.mlp"), r"blocks\.0\.mlp\.fc2 has no bias"),
        (lambda: _shared(Vit()), lambda component: component.kind == "mlp", "is shared by|used in 2 places"),
        (lambda: _tied(Vit()), exactly("blocks.0.mlp"), r"is shared by .*also\.weight"),
        (lambda: Plain(Gated(True), True), lambda component: component.kind == "mlp", "multiplied by a gate in part"),
        (lambda: Plain(Normed(), True), "part.head.1", r"aten\.layer_norm in part\.inner before any linear layer"),
        (lambda: Vit(readout="late"), "last.attn.head.0", "another stream"),
        (lambda: Vit(), "kind:bias", "same for every image"),
        (lambda: Vit(), "embed", "enters the residual stream"),
        (lambda: Vit(trunk=nn.ReLU()), "kind:lumped", "could not be told apart"),
    ],
    ids=["head-bias", "mlp-bias", "shared", "tied", "gate", "norm", "stream", "constant", "embed", "lumped"],
)  # fmt: skip
def test_what_weights_cannot_say_is_refused_with_the_reason(make, wanted, reason: str):
    model = tiny(make())
    edit = mean_ablated(model, wanted, pictures())
    assert edit.refused and not edit.expressed and not edit.state
    for cut in edit.refused:
        assert re.search(reason, cut.reason), cut.reason
    with torch.no_grad():
        assert torch.equal(edit.apply().module(pictures()), model.module(pictures()))


def test_what_can_be_expressed_is_although_other_things_are_refused():
    model = tiny(Plain(Normed(), True))
    alone = mean_ablated(model, ["part.head.1", "part.head.2"], pictures())
    assert [str(cut.component) for cut in alone.refused] == ["part.head.1", "part.head.2"]
    together = mean_ablated(model, "kind:head, embed", pictures())  # all heads at once are a constant
    assert len(together.expressed) == 4 and [str(cut.component) for cut in together.refused] == ["embed"]
    with torch.no_grad():
        assert apart(together.apply().module(pictures(seed=3)), together.total(pictures(seed=3))) < 1e-12
    table = together.table().to_pylist()
    assert [row["expressed"] for row in table] == [True] * 4 + [False]


def test_bad_input_is_refused():
    model = tiny(Vit())
    with pytest.raises(ArgumentError, match="matches none"):
        mean_ablated(model, "blocks.7.mlp", pictures())
    with pytest.raises(UnweaveError, match="no images"):
        mean_ablated(model, "blocks.0.mlp", [])
    with pytest.raises(UnweaveError, match=r"images \[3, 16, 16\]"):
        mean_ablated(model, "blocks.0.mlp", torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(UnweaveError, match="float32"):
        mean_ablated(model, "blocks.0.mlp", pictures().float())
    with pytest.raises(NonFiniteError, match="mean of what a component writes"):
        mean_ablated(model, "blocks.0.mlp", pictures() * float("nan"))


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_saved_edit_loads_without_this_program_and_with_it(tmp_path):
    model = unweave.load_model("timm/test_vit", random_weights=True)
    edit = mean_ablated(model, "last:1", model.example(3), source="noise")
    path = edit.save(tmp_path / "new" / "debiased.safetensors")
    plain = timm.create_model("test_vit").eval()
    plain.load_state_dict(load_file(path))
    images = model.example(5)[3:]
    edited, loaded = edit.apply(), unweave.load_model("timm/test_vit", checkpoint=path)
    with torch.no_grad():
        assert torch.equal(plain(images), edited.module(images))
        assert torch.equal(loaded.readout(images), edited.readout(images))
        assert apart(loaded.readout(images), edit.total(images)) < 1e-5
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["weights"] == {"before": model.weights_hash, "after": loaded.weights_hash}
    assert card["means"] == {"average": "readout", "images": 3, "source": "noise"}
    assert [entry["name"] for entry in card["components"]] == [str(entry) for entry in edit.expressed]
    assert {entry["component"] for entry in card["refused"]} == {str(cut.component) for cut in edit.refused}
    assert sorted(file.name for file in path.parent.iterdir()) == ["debiased.json", "debiased.safetensors"]
    with pytest.raises(UnweaveError, match=r"ends in \.safetensors"):
        edit.save(tmp_path / "debiased.pt")
    with pytest.raises(UnweaveError, match="no `save_pretrained`"):
        edit.save_pretrained(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnweaveError, match="cannot be written"):
        edit.save(tmp_path / "file" / "x.safetensors")


def test_the_text_tower_of_a_clip_is_saved_as_it_was(tmp_path):
    model = unweave.load_model("pocket/clip")
    edit = mean_ablated(model, "blocks.5.attn.head.1", model.example(3))
    loaded = unweave.load_model("pocket/clip", checkpoint=edit.save(tmp_path / "clip.safetensors"))
    assert changed(model, loaded) == {"image.blocks.5.attn.proj.weight", "image.blocks.5.attn.proj.bias"}


def test_tied_weights_are_saved_under_each_name(tmp_path):
    model = tiny(_tied(Vit()))
    edit = mean_ablated(model, "blocks.1.mlp", pictures())
    state = load_file(edit.save(tmp_path / "tied.safetensors"))
    assert torch.equal(state["also.weight"], state["blocks.0.mlp.fc2.weight"])
    edited = edit.apply().module
    assert edited.also.weight is edited.blocks[0].mlp.fc2.weight
    fresh = _tied(Vit()).double().eval()
    fresh.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(fresh(pictures()), edited(pictures()))


def test_transformers_write_their_own_folders(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    module = randomise(transformers.ViTForImageClassification(config)).eval()
    model = unweave.Model.from_module(module, input_size=(3, 32, 32))
    edit = mean_ablated(model, "last:1", model.example(3))
    assert {cut.component.kind for cut in edit.refused} == {"bias"}
    folder = edit.save_pretrained(tmp_path / "debiased")
    images = model.example(5)[3:]
    plain = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    loaded = unweave.load_model(f"hf/{folder}")
    with torch.no_grad():
        assert apart(plain(images).logits, model.classifier(edit.total(images))) < 1e-5
        assert apart(loaded.readout(images), edit.total(images)) < 1e-5
    assert json.loads((folder / "edit.json").read_text())["intervention"] == "total mean ablation"
    assert [file.name for file in tmp_path.iterdir()] == ["debiased"]
    with pytest.raises(UnweaveError, match="something at this place"):
        edit.save_pretrained(folder)
