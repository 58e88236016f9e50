"""A report is one file that needs no other, and shows text as text."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from unweave.errors import UnweaveError
from unweave.figures.page import Page


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_is_whole_and_needs_no_other_file(tmp_path):
    page = Page("a <model> & its parts", "what it says")
    page.facts([("components", "12")])
    page.section("first", "text with <tags>")
    page.figure(Image.new("RGB", (4, 4)), 'a "picture"')
    page.section("second", "more")
    page.table(["name", "share"], [["blocks.0", "12 %"]])
    page.code("unweave <model>")
    reader = Reader()
    reader.feed(page.save(tmp_path / "below" / "report.html").read_text("utf-8"))
    assert not reader.open
    assert [source[:22] for source in reader.sources] == ["data:image/png;base64,"]
    for text in ("a <model> & its parts", "text with <tags>", "blocks.0", "unweave <model>"):
        assert text in reader.text
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnweaveError, match="cannot be written"):
        Page("a", "b").save(tmp_path / "file" / "report.html")
