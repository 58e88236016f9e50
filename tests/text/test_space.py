"""Text spaces: the library's own embeddings, averaged over templates, each of length one, kept by their content."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

import unweave
from unweave.errors import ArgumentError, ModelError
from unweave.pocket import evaluation, text
from unweave.pocket.views import whole
from unweave.text import TextSpace, cache, features
from unweave.text import space as spaces

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def averaged(embed, phrases, templates):
    """The same, one phrase and one template at a time."""
    rows = []
    for phrase in phrases:
        each = [normalize(embed(template.format(phrase)), dim=-1) for template in templates]
        rows.append(normalize(sum(each) / len(each), dim=-1))
    return torch.stack(rows)


# --- the pocket world


def test_the_pocket_space_is_its_clip():
    space = unweave.text_space("pocket/clip")
    own = text("pocket/clip")
    phrases = ["a bird", "something red", "a bird"]
    expected = averaged(lambda one: own.encode([one])[0], phrases, space.templates)
    assert torch.allclose(space.encode(phrases), expected, atol=1e-6)
    images = space.images.readout(whole(torch.from_numpy(evaluation().images[:40])))
    logits = space.logits(images.detach(), space.encode(["a bird", "a vehicle"]))
    assert torch.allclose(
        logits / space.match.scale, normalize(images.detach(), dim=-1) @ space.encode(["a bird", "a vehicle"]).T
    )
    assert not space.match.sigmoid and space.match.bias == 0


def test_the_pocket_worlds_features_are_in_words_that_it_knows():
    from importlib import resources

    space = unweave.text_space("pocket/clip")
    found = features(resources.files("unweave.text").joinpath("pocket.toml"))
    assert {name: len(phrases) for name, phrases in found.items()} == {
        "colour": 10,
        "pattern": 4,
        "location": 10,
        "category": 7,
    }
    for phrases in found.values():
        assert space.encode(phrases, ["{}"]).shape == (len(phrases), 128)


@pytest.mark.parametrize(
    ("phrases", "what"),
    [
        ([], "no phrases"),
        ([""], "empty"),
        (["  "], "empty"),
        (["a hamburger"], "no word 'hamburger'"),
        (["a bird and a bird and a bird and a bird and a bird and a bird"], "words"),
    ],
)
def test_phrases_that_cannot_be(phrases, what):
    with pytest.raises(ArgumentError, match=what):
        unweave.text_space("pocket/clip").encode(phrases)


def test_templates_may_be_chosen():
    space = unweave.text_space("pocket/clip", templates=["there is {}"])
    assert space.templates == ("there is {}",)
    assert torch.equal(space.encode(["a bird"]), space.encode(["there is a bird"], ["{}"]))
    with pytest.raises(ArgumentError, match="no templates"):
        space.encode(["a bird"], [])


@pytest.mark.parametrize("id", ["timm/vit_tiny_patch16_224", "pocket/deit"])
def test_a_model_without_texts_is_refused(id):
    with pytest.raises(ModelError, match="no text"):
        unweave.text_space(id, random_weights=True)


# --- what is kept


class Counting:
    context = 4

    def __init__(self):
        self.seen = []

    def tokens(self, text):
        return len(text.split())

    def embed(self, texts):
        self.seen += texts
        return torch.tensor([[float(len(one)), 1.0] for one in texts])


def counted():
    encoder = Counting()
    return TextSpace("x", unweave.load_model("pocket/clip"), encoder, "hash", ("{}", "a {}")), encoder


def test_what_was_embedded_is_not_embedded_again(own_cache, monkeypatch):
    monkeypatch.setattr(spaces, "_AT_ONCE", 2)
    space, encoder = counted()
    first = space.encode(["red", "blue", "red"])
    assert encoder.seen == ["red", "a red", "blue", "a blue"]
    again, other = counted()
    assert torch.equal(again.encode(["red", "blue", "red"]), first) and other.seen == []
    assert torch.equal(first[0], first[2])
    assert torch.allclose(first[1], averaged(lambda one: Counting().embed([one])[0], ["blue"], ("{}", "a {}"))[0])
    changed = replace(again, weights_hash="other")
    changed.encode(["red", "blue", "red"])
    assert len(other.seen) == 4


def test_a_damaged_or_closed_cache_costs_time_only(own_cache):
    space, encoder = counted()
    first = space.encode(["red"])
    (file,) = (own_cache / "text").iterdir()
    file.write_bytes(b"nothing")
    assert torch.equal(space.encode(["red"]), first) and len(encoder.seen) == 4
    (own_cache / "text").rename(own_cache / "moved")
    (own_cache / "text").write_bytes(b"a file where the folder should be")
    assert torch.equal(space.encode(["red"]), first) and len(encoder.seen) == 6
    assert cache.folder() == own_cache


def test_a_text_that_is_too_long_is_refused():
    space, _ = counted()
    with pytest.raises(ArgumentError, match="has 5 tokens, and the encoder reads 4") as caught:
        space.encode(["one two three four"])
    assert "a one two three four" in str(caught.value)


# --- the libraries


def test_a_space_of_open_clip(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    space = unweave.text_space("open_clip/tiny", random_weights=True)
    module, tokenizer = space.images.module, open_clip.get_tokenizer("tiny")
    expected = averaged(
        lambda one: module.encode_text(tokenizer([one], context_length=12))[0].detach(),
        ["a dog", "grass"],
        ("{}", "see {}"),
    )
    assert torch.allclose(space.encode(["a dog", "grass"], ["{}", "see {}"]), expected, atol=1e-6)
    assert space.encoder.context == 12 and space.encoder.tokens("a dog") == 4
    with pytest.raises(ArgumentError, match="encoder reads 12"):
        space.encode(["a dog on the grass in the sun before the house of a friend"])
    image = torch.randn(2, 3, 32, 32)
    assert torch.allclose(space.images.readout(image), module.encode_image(image), atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_space_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={token: row for row, token in enumerate(vocabulary)}, merges=[])
    tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(vocabulary), "max_position_embeddings": 10, "bos_token_id": 52, "eos_token_id": 53}
    vision = size | {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = getattr(transformers, f"{kind}Config")(
        text_config=size | words | {"projection_dim": 16, "projection_size": 16},
        vision_config=vision,
        projection_dim=16,
    )
    module = getattr(transformers, f"{kind}Model")(config).eval()
    module.save_pretrained(tmp_path)
    space = unweave.text_space(f"hf/{tmp_path}")
    assert space.match.sigmoid == (kind == "Siglip")
    full = {"padding": "max_length", "max_length": 10} if kind == "Siglip" else {}

    def embed(one):
        with torch.no_grad():
            found = module.get_text_features(**tokenizer([one], return_tensors="pt", **full))
        return found.pooler_output[0] if hasattr(found, "pooler_output") else found[0]

    assert torch.allclose(
        space.encode(["dog", "cat"], ["{}", "see {}"]), averaged(embed, ["dog", "cat"], ("{}", "see {}")), atol=1e-6
    )
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module.get_image_features(image)
        expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
        assert torch.allclose(space.images.readout(image), expected, atol=1e-5)
    with pytest.raises(ArgumentError, match="encoder reads 10"):
        space.encode(["elephants everywhere"])
    assert unweave.text_space(f"hf/{tmp_path}", random_weights=True).weights_hash != space.weights_hash


def test_a_model_of_images_alone_has_no_texts(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no text tower"):
        unweave.text_space(f"hf/{tmp_path}")
