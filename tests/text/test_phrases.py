"""Phrases, templates and features: files that people write."""

from __future__ import annotations

import pytest

from unweave.errors import ArgumentError, DataError
from unweave.text import TEMPLATES, features, read_phrases, read_templates
from unweave.text.phrases import chosen, shipped, spoken
from unweave.text.vocabulary import made, vocabulary


def test_the_published_features_are_there():
    found = features()
    assert list(found) == [
        "color",
        "texture",
        "animal",
        "person",
        "location",
        "pattern",
        "shape",
        "fabric",
        "vehicle",
    ]
    assert found["location"] == ("sea", "beach", "forest", "desert", "city", "sky", "marsh")
    assert sum(map(len, found.values())) == 52


def test_features_of_ones_own(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text('[colour]\nphrases = ["grün", "blue"]\n', "utf-8")
    assert features(path) == {"colour": ("grün", "blue")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no features"),
        ("[a", "cannot be read"),
        ("a = 1", "no list of phrases"),
        ("[a]\nphrases = []", "no list of phrases"),
        ("[a]\nphrases = [1]", "no list of phrases"),
        ('[a]\nphrases = ["x", "x"]', "a phrase twice: 'x'"),
    ],
)
def test_features_that_cannot_be(tmp_path, text, what):
    path = tmp_path / "f.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        features(path)
    assert str(path) in str(caught.value)


def test_lines_of_phrases_and_templates(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("# a comment\nred\n\n  blue \nred\n")
    assert read_phrases(path) == ("red", "blue")
    with pytest.raises(ArgumentError, match=r"needs one \{\}: 'red'"):
        read_templates(path)
    path.write_text("a photo of {}\n")
    assert read_templates(path) == ("a photo of {}",)
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="holds nothing"):
        read_phrases(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_phrases(path)
    with pytest.raises(DataError, match="No such file"):
        read_phrases(tmp_path / "nothing")


def test_templates_are_set_around_one_phrase():
    assert all(template.count("{}") == 1 for template in TEMPLATES) and len(set(TEMPLATES)) == len(TEMPLATES)


def test_the_vocabulary_names_what_can_be_seen():
    found = vocabulary()
    assert 3000 < len(found) < 5000 and len(set(found)) == len(found)
    assert {"striped", "in the forest", "elephant", "bicycle", "ice cream", "sunset", "old man"} <= set(found)
    assert not {"idea", "democracy", "severn", "whore"} & set(found)


def test_the_vocabulary_takes_nouns_by_their_first_sense(tmp_path):
    pytest.importorskip("wordfreq")
    (tmp_path / "data.noun").write_text(
        "  1 licence\n"
        "00000001 05 n 02 dog 0 hound 0 000 | an animal\n"
        "00000002 09 n 01 idea 0 000 | a thought\n"
        "00000003 06 n 01 Dog 0 000 | a name\n"
        "00000004 13 n 02 ice_cream 0 ice_lolly 0 000 | food\n"
        "00000005 05 n 01 zyzzogeton 0 000 | rare\n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 licence\n"
        "dog n 2 1 @ 2 1 00000001 00000002\n"
        "hound n 2 1 @ 2 1 00000002 00000001\n"
        "idea n 1 1 @ 1 1 00000002\n"
        "ice_cream n 1 2 @ ~ 1 1 00000004\n"
        "ice_lolly n 1 0 1 0 00000004\n"
        "zyzzogeton n 1 0 1 0 00000005\n"
    )
    found = made(tmp_path)
    assert [word for word in found if word in ("dog", "hound", "idea", "ice cream", "ice lolly", "zyzzogeton")] == [
        "dog",
        "ice cream",
    ]
    with pytest.raises(DataError, match="WordNet cannot be read"):
        made(tmp_path / "nothing")


def test_what_classes_are_called():
    assert spoken("n01440764") == "tench" and spoken("n02123045") == "tabby" and spoken("n99999999") == "n99999999"
    assert spoken("polar_bear") == "polar bear"


def test_what_is_asked_for():
    known = {"colour": ("red", "blue"), "place": ("sea",)}
    assert chosen(known) == known
    assert chosen(known, ["place"], ["an owl"]) == {"place": ("sea",), "an owl": ("an owl",)}
    assert list(chosen(known, ["colour"], each=True)) == ["colour", "red", "blue"]
    with pytest.raises(ArgumentError, match="no feature 'x'"):
        chosen(known, ["x"])
    with pytest.raises(ArgumentError, match="a feature and a phrase"):
        chosen(known, [], ["place"])


def test_features_that_are_shipped_have_names():
    read = shipped(features="features.toml", birds="waterbirds.toml")
    assert set(read("birds")) == {"background", "bird"} and "color" in read()
    with pytest.raises(ArgumentError, match="No features 'x' are shipped"):
        read("x")
