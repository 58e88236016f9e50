"""Modules as people have them: whatever their forward's signature, wrapped, of several types; and those that cannot be
captured, each with a cure that works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unweave
from tiny import SIZE, WIDTH, Vit, pictures, ready
from unweave.errors import DataError, ModelError, NonFiniteError, UnweaveError
from unweave.models import Model

IMAGE = (3, SIZE, SIZE)
HEAD = "blocks.1.attn.head.0"


class Variadic(Vit):
    """As DINOv2's and DINOv3's own code."""

    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs)


class Adapted(nn.Module):
    """As PEFT's models: the model is inside, and calls are passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = Vit()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.base_model(*args, **kwargs)


class Second(Vit):
    def forward(self, bool_masked_pos: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        return super().forward(pixel_values)


class Keyword(Vit):
    def forward(self, *, scan: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(scan) * scale


class Anything(Vit):
    def forward(self, **given: Tensor) -> Tensor:
        return super().forward(given["pixel_values"])


class Record(Vit):
    """By keyword in, and a mapping out."""

    def forward(self, *, pixel_values: Tensor, return_dict: bool = True) -> dict[str, Tensor]:
        return {"image_embeds": super().forward(pixel_values)}


def compiled_within() -> nn.Module:
    module = Vit()
    for number, block in enumerate(module.blocks):
        module.blocks[number] = torch.compile(block, backend="eager")
    return module


class Optional(Vit):
    def forward(self, picture: Tensor | None = None) -> Tensor:
        return super().forward(picture)


TAKES: dict[str, Callable[[], nn.Module]] = {
    "variadic": Variadic,
    "adapted": Adapted,
    "second": Second,
    "keyword": Keyword,
    "anything": Anything,
    "optional": Optional,
    "record": Record,
    "compiled within": compiled_within,
    "parallel": lambda: nn.DataParallel(Vit()),
    "compiled": lambda: torch.compile(Vit(), backend="eager"),
    "both": lambda: torch.compile(nn.DataParallel(Vit()), backend="eager"),
}


@pytest.mark.parametrize("kind", TAKES)
def test_every_signature_and_wrapper_is_taken_and_leaves_the_names_alone(kind: str) -> None:
    module, plain = ready(TAKES[kind]()), ready(Vit())
    images = pictures(3)
    expected = unweave.plan(plain, images).run(images)
    model = Model.from_module(module, input_size=IMAGE)
    for plan in (unweave.plan(module, images), unweave.plan(model)):
        found = plan.run(images)
        assert [str(part) for part in found.components] == [str(part) for part in expected.components]
        assert HEAD in map(str, found.components)
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-12)
    assert model.module is module


def test_the_argument_that_takes_the_images_can_be_named() -> None:
    class Unnamed(Vit):
        def forward(self, mask: Tensor | None = None, scan: Tensor | None = None) -> Tensor:
            return super().forward(scan)

    module = ready(Unnamed())
    model = Model.from_module(module, input_size=IMAGE, images="scan")
    assert torch.equal(model.readout(pictures()), module(scan=pictures()))
    with pytest.raises(ModelError, match=r"takes no 'scna'[\s\S]+mask, scan"):
        Model.from_module(module, input_size=IMAGE, images="scna")


def test_a_forward_that_needs_more_than_images_says_what() -> None:
    class Both(Vit):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            return super().forward(image) + text

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = Both()
            self.register_buffer("text", torch.ones(WIDTH))

        def forward(self, image: Tensor) -> Tensor:
            return self.both(image, self.text)

    for attempt in (lambda: Model.from_module(ready(Both()), input_size=IMAGE), lambda: unweave.plan(ready(Both()))):
        with pytest.raises(ModelError, match=r"needs more than images: text[\s\S]+holds the others as buffers"):
            attempt()
    unweave.plan(ready(Alone()), pictures())


def test_a_forward_that_takes_anything_asks_for_the_name_of_the_images() -> None:
    class Named(Vit):
        def forward(self, **given: Tensor) -> Tensor:
            return super().forward(given["scan"])

    with pytest.raises(ModelError, match="images="):
        Model.from_module(ready(Named()), input_size=IMAGE)
    Model.from_module(ready(Named()), input_size=IMAGE, images="scan")


def test_weights_of_types_that_do_not_go_together_are_told_to_be_cast() -> None:
    module = ready(Vit()).bfloat16()
    module.blocks[1].float()
    with pytest.raises(ModelError, match=r"module\.float\(\)"):
        Model.from_module(module, input_size=IMAGE)
    Model.from_module(module.float(), input_size=IMAGE)


def test_a_forward_that_somebody_put_in_its_place_is_the_one_that_is_read() -> None:
    module = ready(Second())
    module.forward = lambda mask=None, pixel_values=None: 2 * Vit.forward(module, pixel_values)
    model = Model.from_module(module, input_size=IMAGE)
    torch.testing.assert_close(model.readout(pictures()), module(pixel_values=pictures()))


def test_what_replaces_the_module_in_its_wrapper_is_noticed() -> None:
    module = nn.DataParallel(ready(Vit()))
    model = Model.from_module(module, input_size=IMAGE)
    plan = unweave.plan(model)
    plan.run(pictures())
    module.module = ready(Vit(act=nn.ReLU()))
    with pytest.raises(UnweaveError, match="changed"):
        plan.run(pictures())


class Mixed(Vit):
    """As OpenAI's CLIP after `convert_weights`: the token comes first and is wide, the first layer is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(images.shape[0], -1, -1).to(x.dtype), x], 1).float() + self.position
        return self.norm(self.blocks[1](self.blocks[0](x)))[:, 0]


def test_images_have_the_type_of_the_layer_that_meets_them() -> None:
    module = Mixed().eval()
    hooks = copy.deepcopy(vars(module.embed)["_forward_pre_hooks"])
    model = Model.from_module(module, input_size=IMAGE)
    assert model.dtype == torch.bfloat16
    assert vars(module.embed)["_forward_pre_hooks"] == hooks
    plan = unweave.plan(model)
    assert plan.run(model.example()).representation.dtype == torch.float32
    model.readout.float()
    assert model.dtype == torch.float32


class Rope(Vit):
    """Buffers that are NaN until weights are loaded, as in DINOv3."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.read = read
        self.register_buffer("periods", torch.full((WIDTH,), float("nan")))

    def forward(self, images: Tensor) -> Tensor:
        z = super().forward(images)
        return z * self.periods if self.read else torch.where(z > -1e9, z, self.periods)


def test_a_buffer_may_be_nan_as_long_as_the_representation_is_not() -> None:
    module = ready(Rope(False))
    assert unweave.plan(module, pictures()).run(pictures()).error.max() < 1e-10
    assert unweave.plan(Model.from_module(module, input_size=IMAGE)).run(pictures()).error.max() < 1e-10
    for attempt in (
        lambda: unweave.plan(ready(Rope(True)), pictures()),
        lambda: Model.from_module(ready(Rope(True)), input_size=IMAGE),
    ):
        with pytest.raises(NonFiniteError, match=r"8 of the 8 entries of the buffer[\s\S]+at: periods"):
            attempt()


def test_finite_weights_that_make_an_infinite_representation_are_blamed() -> None:
    module = ready(Vit(), torch.float32)
    with torch.no_grad():
        module.norm.weight.fill_(1e38)
    module.last = nn.Linear(WIDTH, WIDTH)
    forward = module.forward
    module.forward = lambda images: (forward(images) * 1e3).exp() - forward(images).exp()
    with pytest.raises(NonFiniteError, match="though the weights are finite"):
        unweave.plan(module, pictures(2, torch.float32))


# --- what cannot be captured, and the cure


def traced() -> nn.Module:
    return torch.jit.trace(ready(Vit(), torch.float32), pictures(2, torch.float32))


def after_tracing(scripted: nn.Module) -> nn.Module:
    module = Vit().eval()
    module.load_state_dict(scripted.state_dict())
    return module


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Vit().eval()


def after_meta(module: nn.Module) -> nn.Module:
    module.to_empty(device="cpu")
    module.load_state_dict(ready(Vit(), torch.float32).state_dict())
    return module


def inferred() -> nn.Module:
    with torch.inference_mode():
        return ready(Vit(), torch.float32)


class Lazy(Vit):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LazyLinear(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(super().forward(images))


def after_lazy(module: nn.Module) -> nn.Module:
    module(pictures(1, torch.float32))
    return module


def quantised() -> nn.Module:
    quantise = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    return quantise(ready(Vit(), torch.float32), {nn.Linear})


KINDS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[nn.Module], nn.Module]]] = {
    "traced": (traced, r"TorchScript[\s\S]+load_state_dict\(scripted", after_tracing),
    "inside": (
        lambda: nn.Sequential(nn.Identity(), traced()),
        r"TorchScript[\s\S]+at: 1",
        lambda m: after_tracing(m[1]),
    ),
    "meta": (on_meta, r"meta device[\s\S]+at: token[\s\S]+to_empty", after_meta),
    "inference": (inferred, r"inference_mode[\s\S]+copy.deepcopy", copy.deepcopy),
    "lazy": (lambda: Lazy().eval(), r"no shape yet[\s\S]+at: last.weight[\s\S]+call the module once", after_lazy),
    "quantised": (
        quantised,
        r"quantised[\s\S]+at: blocks\.0\.attn\.q[\s\S]+before it was",
        lambda _: ready(Vit(), torch.float32).bfloat16().float(),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_captured_has_a_message_of_its_own_and_the_cure_works(kind: str) -> None:
    make, says, cured = KINDS[kind]
    module, images = make(), pictures(2, torch.float32)
    for attempt in (lambda: unweave.plan(module, images), lambda: Model.from_module(module, input_size=IMAGE)):
        with pytest.raises(ModelError, match=says):
            attempt()
    assert unweave.plan(cured(module), images).run(images).error.max() < 1e-5


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch was built without it")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    with one_process(distributed, tmp_path):
        module = ready(Vit(), torch.float32)
        mesh = init_device_mesh("cpu", (1,))
        module.norm.weight = nn.Parameter(distribute_tensor(module.norm.weight.detach(), mesh))
        with pytest.raises(ModelError, match=r"sharded over processes[\s\S]+at: norm\.weight[\s\S]+full_state_dict"):
            unweave.plan(module, pictures(2, torch.float32))


class one_process:
    def __init__(self, distributed: Any, folder: Any) -> None:
        self.distributed, self.folder = distributed, folder

    def __enter__(self) -> None:
        store = self.distributed.FileStore(str(self.folder / "store"), 1)
        self.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        self.distributed.destroy_process_group()


def test_a_module_that_fails_says_in_which_line() -> None:
    class Broken(Vit):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images, mask=None)  # type: ignore[call-arg]

    with pytest.raises(ModelError, match=r"does not run[\s\S]+at: .*Broken.*test_forward\.py:\d+ in forward"):
        Model.from_module(ready(Broken()), input_size=IMAGE)


class Tubelets(Vit):
    """Clips `[image, frame, channel, height, width]`: two frames to a tubelet, the mean over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed3d = nn.Conv3d(3, WIDTH, (2, 8, 8), (2, 8, 8))

    def forward(self, clips: Tensor) -> Tensor:
        x = self.embed3d(clips.transpose(1, 2)).flatten(2).transpose(1, 2)
        return self.norm(self.blocks[1](self.blocks[0](x)))


def test_clips_are_images_of_one_more_axis() -> None:
    module = ready(Tubelets())
    model = Model.from_module(module, input_size=(6, 3, SIZE, SIZE), pool="mean")
    clips = torch.randn(2, 6, 3, SIZE, SIZE, dtype=torch.float64)
    assert model.example().shape == (2, 6, 3, SIZE, SIZE) and "6 x 3 x 16 x 16" in repr(model)
    torch.testing.assert_close(model.readout(clips), module(clips).mean(1))
    for plan in (unweave.plan(model), unweave.plan(module, clips)):
        assert plan.run(clips).error.max() < 1e-12
    from PIL import Image

    with pytest.raises(DataError, match="takes clips of 6 frames"):
        model.preprocess(Image.new("RGB", (8, 8)))


@pytest.fixture(autouse=True)
def _no_compilation() -> Iterator[None]:
    yield
    torch._dynamo.reset()
