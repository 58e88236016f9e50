"""Files that somebody broke: whatever is in them, they are read, or refused by an error that says which file and why.

Valid files of every kind are changed at random, from seeds, and there are some that were made by hand. Nothing else
than an `UnweaveError` may come out, no code in a file may run, and what is read is what the file says.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save as as_safetensors
from torch import nn

from unweave.errors import DataError, ModelError, UnweaveError
from unweave.images import open_images, read_image
from unweave.models import load_model
from unweave.models.checkpoint import load_checkpoint
from unweave.notation import DEPTH, parse_json, parse_toml, parse_xml, to_json
from unweave.text import features, read_phrases, read_templates

DEEP = 100_000
BOM = b"\xef\xbb\xbf"


# --- what is valid


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def table_csv(folder: Path) -> tuple[Path, bytes]:
    (folder / "a.png").write_bytes(picture("PNG"))
    return folder / "m.csv", b"id,path,label,group,share\nx,a.png,swan,1,0.5\ny,b.png,duck,2,\nz,c.png,,3,1e3\n"


def table_parquet(folder: Path) -> tuple[Path, bytes]:
    (folder / "a.png").write_bytes(picture("PNG"))
    file = io.BytesIO()
    rows = {"path": ["a.png", "b.png", "c.png"], "label": ["swan", None, "duck"], "group": [1, 2, 3]}
    parquet.write_table(pa.table(rows), file)
    return folder / "m.parquet", file.getvalue()


def members(content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, inner in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(inner)
            tar.addfile(member, io.BytesIO(inner))
    return file.getvalue()


def samples_tar(folder: Path) -> tuple[Path, bytes]:
    known = json.dumps({"who": "me", "box": [1, 2], "share": 0.5}).encode()
    return folder / "t.tar", members(
        {"a.png": picture("PNG"), "a.json": known, "a.cls": b"7", "b.jpg": picture("JPEG")}
    )


def waterbirds_csv(folder: Path) -> tuple[Path, bytes]:
    return folder / "metadata.csv", b"img_id,img_filename,y,split,place\n1,a.png,0,0,1\n2,b.png,1,2,0\n"


def validation(folder: Path) -> None:
    images = folder / "ILSVRC/Data/CLS-LOC/val"
    images.mkdir(parents=True, exist_ok=True)
    (images / "v1.png").write_bytes(picture("PNG"))


def solution_csv(folder: Path) -> tuple[Path, bytes]:
    validation(folder)
    return folder / "LOC_val_solution.csv", b"ImageId,PredictionString\nv1,n01440764 1 2 3 4\n"


def annotation_xml(folder: Path) -> tuple[Path, bytes]:
    validation(folder)
    path = folder / "ILSVRC/Annotations/CLS-LOC/val/v1.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, b"<annotation><folder>val</folder><object><name>n01440764</name></object></annotation>"


def look(path: Path) -> None:
    """Everything that can be asked of a set of images."""
    for image in open_images(str(path)):
        assert not any(isinstance(value, float) and value != value for value in image.fields.values())
        with contextlib.suppress(DataError):
            image.read()


def look_above(levels: int) -> Callable[[Path], None]:
    return lambda path: look(path.parents[levels])


class Small(nn.Module):
    """What checkpoints are loaded into."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)


def in_torch(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def weights(make: Callable[[dict[str, torch.Tensor]], bytes], name: str) -> Callable[[Path], tuple[Path, bytes]]:
    return lambda folder: (folder / name, make(Small().state_dict()))


def into_small(path: Path) -> None:
    load_checkpoint(Small(), path)


@cache
def hf_files() -> dict[str, bytes]:
    import tempfile

    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=1)).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def hf_file(name: str) -> Callable[[Path], tuple[Path, bytes]]:
    def make(folder: Path) -> tuple[Path, bytes]:
        for other, content in hf_files().items():
            (folder / other).write_bytes(content)
        return folder / name, hf_files()[name]

    return make


def hf_model(path: Path) -> None:
    load_model(f"hf/{path.parent}")


def written(name: str, content: bytes) -> Callable[[Path], tuple[Path, bytes]]:
    return lambda folder: (folder / name, content)


KINDS: dict[str, tuple[Callable[[Path], tuple[Path, bytes]], Callable[[Path], Any]]] = {
    "csv": (table_csv, look),
    "parquet": (table_parquet, look),
    "tar": (samples_tar, look),
    "waterbirds": (waterbirds_csv, look_above(0)),
    "imagenet's table": (solution_csv, look_above(0)),
    "imagenet's annotations": (annotation_xml, look_above(4)),
    "toml": (written("f.toml", b'[colour]\nphrases = ["blue", "green"]\n[size]\nphrases = ["big"]\n'), features),
    "phrases": (written("v.txt", "# names\nswan\nÉider\n".encode()), read_phrases),
    "templates": (written("t.txt", b"a photo of {}\n{} here\n"), read_templates),
    **{
        format: (written(f"a.{format}", picture(format)), read_image)
        for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "JPEG2000")
    },
    "16 bits": (written("a.png", picture("PNG", "I;16")), read_image),
    "safetensors": (weights(as_safetensors, "w.safetensors"), into_small),
    "pt": (weights(in_torch, "w.pt"), into_small),
    "old pt": (weights(lambda state: in_torch(state, _use_new_zipfile_serialization=False), "w.bin"), into_small),
    "hf config": (hf_file("config.json"), hf_model),
    "hf preprocessing": (hf_file("preprocessor_config.json"), hf_model),
    "hf weights": (hf_file("model.safetensors"), hf_model),
}
"""Of every kind of file one that is valid, and what reads it."""


# --- what is random

BITS = (
    b"\0", b"\xff\xfe", BOM, b"\n", b'"', b"'", b",", b"{", b"}", b"[", b"]", b"<", b">", b"&", b"=", b"-1", b"0",
    b"NaN", b"Infinity", b"1e999", b"9" * 30, b"null", b"true", b"{}", b"\\ud800", b"\xc3\x28", b"path",
)  # fmt: skip
"""What is put into files: what ends something, or begins it, or is no number."""


def changed(content: bytes, rng: random.Random) -> bytes:
    """A file with one to four things wrong with it."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 2, 8, 64, len(data))))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.choice(BITS)
            case 2:
                data[at : at + len(BITS[0])] = rng.choice(BITS)
            case 3:
                del data[at:to]
            case 4:
                data[at:at] = data[at:to]
            case 5 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def checked(kind: str, folder: Path, seeds: range) -> int:
    """Reads a file that was changed for each seed, and says how many of them were refused."""
    make, read = KINDS[kind]
    path, content = make(folder)
    path.write_bytes(content)
    read(path)
    refused = 0
    for seed in seeds:
        path.write_bytes(changed(content, random.Random(seed)))
        try:
            read(path)
        except UnweaveError:
            refused += 1
        except BaseException as error:
            error.add_note(f"{kind}, changed with seed {seed}")
            raise
    return refused


@pytest.mark.filterwarnings("ignore::unweave.errors.DataWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_were_changed_at_random(kind: str, tmp_path: Path) -> None:
    assert checked(kind, tmp_path, range(20 if kind.startswith("hf") else 60)) > 0


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_very_many_files_that_were_changed_at_random(kind: str, tmp_path: Path) -> None:
    assert checked(kind, tmp_path, range(60, 3000)) > 0


# --- what was made by hand

LAUGHS = b'<!DOCTYPE a [<!ENTITY b "ha">%s]><annotation><object><name>&b9;</name></object></annotation>' % b"".join(
    b'<!ENTITY b%d "%s">' % (level, b"&b%d;" % (level - 1) * 10) for level in range(1, 10)
)


def columns_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def twice_parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table([pa.array(["a.png"])] * 2, names=["path", "path"]), file)
    return file.getvalue()


class Code:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def sparse() -> bytes:
    state = Small().state_dict()
    return in_torch(state | {"body.weight": state["body.weight"].to_sparse()})


def quantised() -> bytes:
    state = Small().state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.quantize_per_tensor(state["body.weight"], 0.1, 0, torch.qint8)
        return in_torch(state | {"body.weight": small})


def other(name: str, kind: torch.dtype) -> dict[str, torch.Tensor]:
    state = Small().state_dict()
    return state | {name: torch.ones_like(state[name], dtype=kind)}


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(in_torch(Small().state_dict()))) as there, zipfile.ZipFile(file, "w") as packed:
        for member in there.infolist():
            packed.writestr(member.filename, there.read(member), zipfile.ZIP_DEFLATED)
    return file.getvalue()


NASTY: list[tuple[str, str, bytes, str]] = [
    ("a column twice", "csv", b"path,path\na.png,b.png\n", "column 'path' twice"),
    ("a NUL in a path", "csv", b"path\na\0.png\n", "NUL"),
    ("a row that is too long", "csv", b"path,label\na.png,x,y\n", "line 2 has 3 cells"),
    ("a row that is too short", "csv", b"path,label\na.png\n", "line 2 has 1 cells"),
    ("a quotation without end", "csv", b'path\n"a.png\n', "cannot be read"),
    ("not UTF-8", "csv", b"path\n\xff.png\n", "not UTF-8"),
    ("a very long cell", "csv", b"path\n" + b"a" * 1_000_000, "field larger"),
    ("no rows", "csv", b"path\n", "no images"),
    ("a path that is none", "csv", b"path,label\n,x\n", "has no path"),
    ("numbers for paths", "parquet", columns_parquet(path=[1, 2]), "not a path: 1"),
    ("bytes for paths", "parquet", columns_parquet(path=[b"a.png"]), "not a path: b'a.png'"),
    ("a NUL in a path", "parquet", columns_parquet(path=["a\0.png"]), "not a path"),
    ("a column twice", "parquet", twice_parquet(), "column 'path' twice"),
    ("nothing", "parquet", b"", "cannot be read"),
    ("a solution without the column", "imagenet's table", b"ImageId,Label\nv1,x\n", "no column `PredictionString`"),
    ("a solution that is empty", "imagenet's table", b"ImageId,PredictionString\nv1,  \n", "'v1' is empty"),
    ("an annotation that is none", "imagenet's annotations", b"<annotation><object>", "annotation cannot be read"),
    ("an annotation that is empty", "imagenet's annotations", b"", "annotation cannot be read"),
    ("billion laughs", "imagenet's annotations", LAUGHS, "defines entities of its own"),
    ("another encoding", "imagenet's annotations", b'<?xml version="1.0" encoding="nope"?><a/>', "cannot be read"),
    ("a number of birds", "waterbirds", b"img_filename,y,split,place\na.png,-1,0,0\n", "y is '-1'"),
    ("deep JSON", "tar", members({"a.png": picture("PNG"), "a.json": b"[" * DEEP}), "nested"),
    ("deep JSON that ends", "tar", members({"a.json": b"[" * 99 + b"]" * 99}), "nested"),
    ("half a character", "tar", members({"a.json": b'{"who": "\\ud800"}'}), "cannot be read"),
    ("no number in JSON", "tar", members({"a.json": b'{"who": NaN}'}), "NaN is no number"),
    ("a number out of range in JSON", "tar", members({"a.json": b'{"who": 1e999}'}), "1e999 is no number"),
    ("a name twice in JSON", "tar", members({"a.json": b'{"who": 1, "who": 2}'}), "'who' twice"),
    ("a caption that is not UTF-8", "tar", members({"a.txt": b"\xff"}), "cannot be read"),
    ("deep TOML", "toml", b"a = " + b"[" * DEEP, "nested"),
    ("deep tables", "toml", b"[" + b".".join([b"a"] * 1000) + b"]\nphrases = ['x']\n", "nested|list of phrases"),
    ("not UTF-8", "toml", b"[a]\nphrases = ['\xff']\n", "not UTF-8"),
    ("not UTF-8", "phrases", b"\xff\n", "not UTF-8"),
    ("nothing but zeros", "templates", bytes(100), "exactly|one {}"),
    ("PostScript", "PNG", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ("sparse weights", "pt", sparse(), "sparse.*body.weight"),
    ("quantised weights", "pt", quantised(), "quantised"),
    ("complex weights", "pt", in_torch(other("body.weight", torch.complex64)), "kind of number: body.weight"),
    ("complex weights", "safetensors", as_safetensors(other("body.weight", torch.complex64)), "kind of number"),
    ("fractions for counts", "pt", in_torch(other("norm.num_batches_tracked", torch.float32)), "kind of number"),
    ("weights that grow", "pt", compressed(), "neither safetensors"),
    ("a list", "pt", in_torch([1, 2]), "no state dict"),
    ("a deep configuration", "hf config", b"[" * DEEP, "cannot load the model"),
    ("a number for a configuration", "hf config", b"7", "cannot load the model"),
    ("weights that are cut off", "hf weights", hf_files()["model.safetensors"][:500], "cannot load the model"),
    ("a preprocessing that is cut off", "hf preprocessing", b"{", "cannot load the model"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content", "said"), [row[1:] for row in NASTY], ids=[f"{a}: {b}" for a, b, *_ in NASTY]
)
def test_files_that_were_made_by_hand(kind: str, content: bytes, said: str, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    path, _ = make(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UnweaveError, match=f"(?s){said}") as caught:
        read(path)
    assert caught.value.where
    assert caught.value.cure or kind == "PNG"


@pytest.mark.parametrize("kind", ["csv", "waterbirds", "imagenet's table", "toml", "phrases", "templates"])
def test_a_byte_order_mark_changes_nothing(kind: str, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    path, content = make(tmp_path)
    path.write_bytes(content)
    expected = read(path)
    path.write_bytes(BOM + content)
    assert read(path) == expected


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for content in (pickle.dumps(Code(trace)), in_torch({"a": Code(trace)})):
        path = tmp_path / "w.bin"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="weights alone"):
            into_small(path)
        folder = tmp_path / "hf"
        folder.mkdir(exist_ok=True)
        _, _ = hf_file("config.json")(folder)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="nothing is run") as caught:
            load_model(f"hf/{folder}")
        assert "safetensors" in str(caught.value.cure)
    assert not trace.exists()


def test_no_code_beside_a_model_is_run_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_file("config.json")(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    known = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(known))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with pytest.raises(ModelError):
        load_model(f"hf/{tmp_path}")
    assert not (tmp_path / "trace").exists()


def test_weights_that_are_missing_are_not_drawn_by_chance(tmp_path: Path) -> None:
    hf_file("config.json")(tmp_path)
    known = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(known | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match="weights are missing"):
        load_model(f"hf/{tmp_path}")


def test_a_tar_with_holes_takes_no_room(tmp_path: Path) -> None:
    """A sparse member says in a few bytes that it has a terabyte of zeros."""
    member = tarfile.TarInfo("a.json")
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.json"}
    member.pax_headers = headers | {
        "GNU.sparse.size": str(1 << 40),
        "GNU.sparse.map": "0,1",
        "GNU.sparse.numblocks": "1",
    }
    member.size = 1
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"7"))
    with pytest.raises(DataError, match="more than 64 MB"):
        open_images(str(path))


def test_what_lies_beside_an_image_does_not_take_its_name(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(members({"a.png": picture("PNG"), "a.json": b'{"id": "other", "bytes": -1}'}))
    (image,) = open_images(str(path))
    assert image.id == "t/a" and image.fields == {"json_id": "other", "json_bytes": -1, "bytes": len(picture("PNG"))}


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["007", "7"], ["007", "7"]),
        (["1", "2", ""], [1, 2, None]),
        (["1.0", "1.00"], ["1.0", "1.00"]),
        (["1.0", "-2.25"], [1.0, -2.25]),
        (["0.5", "-1e3"], ["0.5", "-1e3"]),
        (["1.50", "2.5"], ["1.50", "2.5"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["1e999", "1"], ["1e999", "1"]),
        (["9" * 30, "1"], ["9" * 30, "1"]),
        (["True", "False"], [True, False]),
        (["true", "false"], ["true", "false"]),
        (["true", "True"], ["true", "True"]),
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["nan", "1"], ["nan", "1"]),
        (["swan", ""], ["swan", ""]),
    ],
)
def test_a_table_says_what_its_cells_say(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path,label\n" + "".join(f"{row}.png,{cell}\n" for row, cell in enumerate(cells)))
    assert [image.fields["label"] for image in open_images(str(path))] == values


def test_labels_of_a_tar_keep_their_zeros(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(members({f"{n}{end}": c for n, t in (("a", b"007"), ("b", b"7")) for end, c in ((".png", picture("PNG")), (".cls", t))}))  # fmt: skip  # noqa: E501
    assert [image.fields["label"] for image in open_images(str(path))] == ["007", "7"]


def test_no_number_is_no_field(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(columns_parquet(path=["a.png", "b.png"], share=[float("nan"), 1.0]))
    assert [image.fields["share"] for image in open_images(str(path))] == [None, 1.0]


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 5000 + ".csv", "hf/" + "x" * 5000, "imagenet:" + "x" * 5000, "a\0b"]
)
def test_names_that_no_file_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnweaveError):
        open_images(name)
    with pytest.raises(UnweaveError):
        load_model(name)


@pytest.mark.parametrize(
    "name",
    ["world/0/0", "world/0/-1", f"world/0/{10**9}", f"world/{2**70}/3", "world/0/" + "9" * 5000, "world/²/3", "x"],
)
def test_pocket_worlds_that_there_are_not(name: str) -> None:
    with pytest.raises(DataError, match="no such scenes") as caught:
        open_images(f"pocket/{name}")
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    for name, read in (("m.csv", look), ("f.toml", features), ("v.txt", read_phrases), ("w.pt", into_small)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UnweaveError):
            read(tmp_path / name)
    with pytest.raises(UnweaveError, match="not a file"):
        read_phrases("/dev/zero")


# --- notation


@pytest.mark.parametrize("parse", [parse_json, parse_toml, parse_xml])
def test_notation_is_read_or_refused_by_a_reason(parse: Callable[[bytes], Any]) -> None:
    texts = [b'{"a": [1, 2.5, null, "x"]}', b'a = [1, 2.5]\n[b.c]\nd = "x"\n', b"<a><b c='d'>e</b></a>"]
    for seed in range(600):
        rng = random.Random(seed)
        content = changed(rng.choice(texts), rng)
        try:
            parse(content)
        except ValueError as error:
            assert str(error)


def test_depth_is_limited_and_nothing_else() -> None:
    inside = "[" * DEPTH + "]" * DEPTH
    assert json.dumps(parse_json(inside)) == inside
    for outside in (f"[{inside}]", "[" * DEEP + "]" * DEEP, '{"a":' * DEEP):
        with pytest.raises(ValueError, match="nested"):
            parse_json(outside)
    with pytest.raises(ValueError, match="nested"):
        parse_toml("a = " + "[" * (DEPTH + 1) + "]" * (DEPTH + 1))
    wide = [[number] for number in range(1000)]
    assert parse_json(json.dumps(wide)) == wide


def test_json_that_is_written_is_json() -> None:
    text = to_json({"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": -float("inf")}, "d": None})
    assert parse_json(text) == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": None}
