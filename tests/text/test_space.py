"""Text spaces: the library's own embeddings, averaged over templates, each of length one, kept by their content."""

from __future__ import annotations

import json
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
    drawn = unweave.text_space(f"hf/{tmp_path}", random_weights=True)
    assert drawn.weights_hash != space.weights_hash
    model = unweave.load_model(f"hf/{tmp_path}", random_weights=True)
    assert drawn.images.weights_hash == model.weights_hash


def test_a_model_of_images_alone_has_no_texts(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no text tower"):
        unweave.text_space(f"hf/{tmp_path}")


# --- conventions of the libraries

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "dog", "red", "stripes", "picture"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(*, mask=True, types=False):
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    vocabulary = {word: row for row, word in enumerate(WORDS)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", *(["token_type_ids"] if types else []), *(["attention_mask"] if mask else [])]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, model_input_names=names, **special)


def saved(folder, kind, *, own=None, vision=None, **options):
    """A tiny model of images and texts, and its tokenizer, in a folder."""
    transformers = pytest.importorskip("transformers")
    words = {"vocab_size": len(WORDS), "max_position_embeddings": 10, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(transformers, f"{kind}Config")(
        text_config=SIZE | words | {"pad_token_id": 0, "projection_dim": 12},
        vision_config=SIZE | {"image_size": 32, "patch_size": 8, "projection_dim": 12} | (vision or {}),
        **options,
    )
    config.architectures = [f"{kind}Model"]
    module = getattr(transformers, f"{kind}Model")(config).eval()
    module.save_pretrained(folder)
    (own or tokenizer()).save_pretrained(folder)
    return module


def pooled(found):
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("MetaClip2", {"projection_dim": 12}),
        ("ChineseCLIP", {"projection_dim": 12}),
        ("CLIPSeg", {"projection_dim": 12}),
        ("OwlViT", {"projection_dim": 12}),
        ("Tipsv2", {}),
    ],
)
def test_images_and_texts_are_those_that_the_library_compares(tmp_path, kind, options):
    """Several image towers of the library lack the projection to where the texts are."""
    if not hasattr(pytest.importorskip("transformers"), f"{kind}Model"):
        pytest.skip("this version has no such model")
    module = saved(tmp_path, kind, own=tokenizer(types=kind == "ChineseCLIP"), **options)
    space = unweave.text_space(f"hf/{tmp_path}", templates=["{}"])
    pixels = space.images.example(2)
    with torch.no_grad():
        assert torch.allclose(space.images.readout(pixels), pooled(module.get_image_features(pixels)), atol=1e-5)
        each = torch.cat([space.encoder.embed([text]) for text in ("a dog", "a photo of red stripes")])
        assert torch.allclose(space.encoder.embed(["a dog", "a photo of red stripes"]), each, atol=1e-5)
    assert space.encode(["a dog"]).shape[1] == space.images.readout(pixels).shape[1]
    assert space.match.scale > 1 and not space.match.sigmoid


def test_texts_without_a_mask_are_filled_up_to_the_full_length(tmp_path):
    saved(tmp_path, "CLIP", own=tokenizer(mask=False), projection_dim=12)
    assert unweave.text_space(f"hf/{tmp_path}").encoder.length == 10


def test_weights_and_tokenizers_that_are_missing_are_said(tmp_path):
    transformers = pytest.importorskip("transformers")
    whole = saved(tmp_path / "whole", "CLIP", projection_dim=12)
    classifier = transformers.CLIPForImageClassification(whole.config).eval()
    classifier.config.image_size = 32
    classifier.save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match="weights of CLIPModel are missing, such as "):
        unweave.text_space(f"hf/{tmp_path / 'classifier'}")
    whole.save_pretrained(tmp_path / "silent")
    with pytest.raises(ModelError, match="The tokenizer") as caught:
        unweave.text_space(f"hf/{tmp_path / 'silent'}")
    assert "save_pretrained" in caught.value.cure and "tokenizer of hf/" in caught.value.where
    other = tokenizer()
    other.add_tokens(["a photo", "red stripes"])
    other.save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="The tokenizer has the token 12, and the text tower knows 11"):
        unweave.text_space(f"hf/{tmp_path / 'whole'}")


def hosted(folder, text, own=None):
    """A tiny model in a folder as OpenCLIP's users share it."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    folder.mkdir(exist_ok=True)
    card = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(card))
    if own is not None:
        own.save_pretrained(folder)
    module = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    torch.save(module.state_dict(), folder / "open_clip_pytorch_model.bin")
    return module.eval()


SMALL = {"width": 16, "heads": 2, "layers": 1}


def test_a_space_of_open_clip_from_a_folder(tmp_path):
    module = hosted(tmp_path, {"context_length": 12, "vocab_size": 49408, **SMALL})
    space = unweave.text_space(f"open_clip/local-dir:{tmp_path}", templates=["{}"])
    assert space.encoder.context == 12
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(space.images.readout(pixels), module.encode_image(pixels), atol=1e-5)
    assert space.images.preprocessing["mean"] == [0.5, 0.5, 0.5]
    again = unweave.text_space(f"open_clip/local-dir:{tmp_path}")
    assert again.weights_hash == space.weights_hash
    assert unweave.text_space(f"open_clip/local-dir:{tmp_path}", random_weights=True).weights_hash != space.weights_hash


def test_a_text_tower_of_transformers_reads_what_it_was_trained_with(tmp_path):
    """As BiomedCLIP: its configuration allows 512 tokens, its texts have 12."""
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(vocab_size=len(WORDS), **SIZE).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "x/y", "context_length": 12}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    module = hosted(tmp_path / "clip", text, tokenizer())
    space = unweave.text_space(f"open_clip/local-dir:{tmp_path / 'clip'}", templates=["{}"])
    assert space.encoder.context == 12 and space.encoder.tokens("a dog") == 4
    given = torch.tensor([[2, 4, 7, 3, *[0] * 8]])
    with torch.no_grad():
        assert torch.allclose(space.encode(["a dog"]), normalize(module.encode_text(given), dim=1), atol=1e-5)


def test_what_is_missing_of_a_folder_of_open_clip_is_said(tmp_path):
    hosted(tmp_path, {"context_length": 12, "vocab_size": 100, "hf_tokenizer_name": "x/y", **SMALL})
    with pytest.raises(ModelError, match=r"The tokenizer x/y cannot be loaded|tells no texts apart") as caught:
        unweave.text_space(f"open_clip/local-dir:{tmp_path}")
    assert "local-dir" in caught.value.cure
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"weights .* could not be loaded"):
        unweave.text_space(f"open_clip/local-dir:{tmp_path}")
    with pytest.raises(ModelError, match="no folder") as caught:
        unweave.text_space(f"open_clip/local-dir:{tmp_path / 'nowhere'}")
    assert "path of a folder" in caught.value.cure


def test_a_tokenizer_that_the_hub_has_is_named(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 100, "hf_tokenizer_name": "nobody/nothing", **SMALL},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="The tokenizer nobody/nothing cannot be loaded") as caught:
        unweave.text_space("open_clip/tiny", random_weights=True)
    assert "--random-weights" not in caught.value.cure
