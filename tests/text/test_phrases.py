"""Phrases, templates and features: files that people write."""

from __future__ import annotations

import pytest

from unweave.errors import TextError
from unweave.text import TEMPLATES, features, read_phrases, read_templates


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
    with pytest.raises(TextError, match=what) as caught:
        features(path)
    assert str(path) in str(caught.value)


def test_lines_of_phrases_and_templates(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("# a comment\nred\n\n  blue \nred\n")
    assert read_phrases(path) == ("red", "blue")
    with pytest.raises(TextError, match=r"needs one \{\}: 'red'"):
        read_templates(path)
    path.write_text("a photo of {}\n")
    assert read_templates(path) == ("a photo of {}",)
    path.write_text("# nothing\n")
    with pytest.raises(TextError, match="holds nothing"):
        read_phrases(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TextError, match="not UTF-8"):
        read_phrases(path)
    with pytest.raises(TextError, match="No such file"):
        read_phrases(tmp_path / "nothing")


def test_templates_are_set_around_one_phrase():
    assert all(template.count("{}") == 1 for template in TEMPLATES) and len(set(TEMPLATES)) == len(TEMPLATES)
