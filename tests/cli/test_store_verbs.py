"""`unweave extract` and `unweave store`, on a small network that is shipped."""

from __future__ import annotations

import json
import shutil

import pytest

from stores import remembered
from unweave.extraction import extractor, job
from unweave.store import Store

MODEL, DATA = "pocket/deit", "pocket/evaluation"
FEW = ("--limit", 12, "--block", 5, "--batch-size", 4, "--device", "cpu")

pytestmark = pytest.mark.xdist_group("store verbs")


@pytest.fixture(autouse=True)
def plans_are_made_once(monkeypatch):
    for module in (job, extractor):
        monkeypatch.setattr(module, "plans_of", remembered)


@pytest.fixture
def store(run, tmp_path):
    result = run("extract", MODEL, DATA, "-o", "störe", *FEW)
    assert result.exit_code == 0, result.output
    return tmp_path / "störe"


def said(result, status=0):
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_extract_says_what_it_did_and_does_it_once(run, store):
    assert len(Store(store)) == 12
    result = run("extract", MODEL, DATA, "-o", store, *FEW)
    assert result.exit_code == 0 and "0 images in" in result.stdout
    assert "12 images x 44 components (head) x 128 numbers of pocket/deit" in result.stdout
    assert "add up to the representation within" in result.stdout
    found = said(run("extract", MODEL, DATA, "-o", store, *FEW, "--json"))
    assert found["extracted"] == 0 and found["rows"] == 12 and found["missing"] == 0 and found["skipped"] == []


def test_extract_in_parts(run, tmp_path):
    first = said(run("extract", MODEL, DATA, "-o", "s", *FEW, "--partition", "1/2", "--json"))
    assert first["extracted"] == 7 and first["missing"] == 1
    assert "not complete: 2 of 3 blocks" in run("store", "info", "s").stdout
    second = said(run("extract", MODEL, DATA, "-o", "s", *FEW, "--partition", "2/2", "--json"))
    assert second["extracted"] == 5 and second["missing"] == 0 and second["rows"] == 12


def test_an_interruption_says_what_is_left(run, monkeypatch):
    whole = job.Extraction.run

    def interrupted(self, part, **options):
        def on_progress(what, done, total):
            if done > 5:
                raise KeyboardInterrupt

        whole(self, part, on_progress=on_progress)

    monkeypatch.setattr(job.Extraction, "run", interrupted)
    result = run("extract", MODEL, DATA, "-o", "s", *FEW)
    assert result.exit_code == 130 and "goes on with the 7 images left" in result.stderr
    monkeypatch.setattr(job.Extraction, "run", whole)
    assert said(run("extract", MODEL, DATA, "-o", "s", *FEW, "--json"))["extracted"] == 7


def test_several_levels_and_a_selection(run, tmp_path):
    found = said(
        run(
            "extract",
            MODEL,
            DATA,
            "-o",
            "s",
            *FEW,
            "--level",
            "layer",
            "--level",
            "head",
            "--select",
            "blocks.5.*",
            "--json",
        )
    )
    assert found["components"] == {"layer": 5, "head": 8}
    assert found["manifest"]["selection"] == ["blocks.5.*"]


def test_a_dry_run(run, tmp_path):
    found = said(run("extract", MODEL, DATA, "-o", "s", *FEW, "--dry-run", "--json"))
    assert found["images"] == 12 and found["speed"] > 0 and not (tmp_path / "s").exists()
    text = run("extract", MODEL, DATA, "-o", "s", *FEW, "--dry-run").stdout
    assert "Nothing was written" in text and f"{found['bytes']:,} bytes" in text and "expected time" in text


def test_info(run, store):
    text = run("store", "info", store).stdout
    assert "12 images" in text and "field label" in text and "torch " in text and "pocket/evaluation: 12" in text
    assert said(run("store", "info", store, "--json"))["manifest"]["rows"] == 5


def test_verify(run, store):
    result = run("store", "verify", store, "--rows", 3)
    assert result.exit_code == 0 and "No faults" in result.stdout and "equal to the last bit" in result.stdout
    path = store / "representation/00000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 255
    path.write_bytes(data)
    found = said(run("store", "verify", store, "--rows", 0, "--json"), 1)
    assert len(found["faults"]) == 1 and "representation, block 1" in found["faults"][0]
    assert "fault: " in run("store", "verify", store, "--rows", 0).stdout
    result = run("store", "export", store, "-o", "t.parquet", "--check")
    assert result.exit_code == 2 and "not those that were written" in result.stderr
    assert run("store", "verify", store, "--rows", 0, "--repair").exit_code == 1
    assert said(run("extract", MODEL, DATA, "-o", store, *FEW, "--json"))["extracted"] == 5
    assert "No faults" in run("store", "verify", store, "--rows", 0).stdout


@pytest.mark.parametrize(
    ("damage", "status", "what"), [("records", 1, "nothing was compared"), ("rows", 2, "the field `rows` cannot be 0")]
)
def test_a_store_in_which_nothing_can_be_compared_is_not_sound(run, store, damage, status, what):
    if damage == "records":
        shutil.rmtree(store / "records")
    else:
        text = (store / "manifest.json").read_text()
        (store / "manifest.json").write_text(text.replace('"rows": 5', '"rows": 0'))
    result = run("store", "verify", store, "--rows", 0)
    assert result.exit_code == status and what in result.output


def test_export(run, store, tmp_path):
    found = said(run("store", "export", store, "-o", "t.parquet", "--select", "blocks.5.*", "--limit", 5, "--json"))
    assert found == {"file": "t.parquet", "images": 5}
    label = Store(store).field("label")[0]
    result = run("store", "export", store, "-o", "out", "--where", f"label={label}")
    assert result.exit_code == 0 and "contributions.safetensors" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("extract", MODEL, DATA, "-o", "store", "--level", "heads"), "is not one of"),
        (("extract", MODEL, DATA, "-o", "store", "--partition", "3/2"), "no part '3/2'"),
        (("extract", MODEL, "nowhere", "-o", "store"), "no such images"),
        (("extract", "pocket/nobody", DATA, "-o", "store"), "nobody"),
        (("store", "info", "nowhere"), "no store here"),
        (("store", "verify", "nowhere"), "no store here"),
        (("store", "export", "nowhere", "-o", "x"), "no store here"),
    ],
)
def test_bad_input_is_an_error_in_words(run, arguments, what):
    result = run(*arguments)
    assert result.exit_code == 2 and what in result.stderr and "Traceback" not in result.stderr


def test_another_weight_file_is_refused(run, store):
    result = run("extract", "pocket/dino", DATA, "-o", store, *FEW)
    assert result.exit_code == 2 and "differs in its model" in result.stderr and "field `model`" in result.stderr


def test_export_of_what_there_is_not(run, store):
    for given, what in (
        (("--where", "label"), "is not a condition"),
        (("--where", "x=1"), "no field"),
        (("--level", "token"), "no level"),
    ):
        result = run("store", "export", store, "-o", "x", *given)
        assert result.exit_code == 2 and what in result.stderr
