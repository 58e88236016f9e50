"""What the verbs print, write and refuse, on the smallest real model."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import unweave
from unweave import Contributions, models
from unweave.decomposition import Plan
from unweave.errors import ModelError

MODEL = ("timm/test_vit", "--random-weights")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.linear_gradient("L").rotate(20 * number).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"not an image [bold]")
    return folder


def in_order(text, *parts):
    position = -1
    for part in parts:
        position = text.index(part, position + 1)
    return True


def test_decompose(run, photos, tmp_path):
    result = run("decompose", *MODEL, photos, "-o", "out")
    assert result.exit_code == 0, result.output
    assert in_order(result.stdout, "Largest shares", "others", "all ", "100.00 %", "4 images", "add up")
    assert in_order(result.stdout, "1 images were left out", "2.png", "known format", "layers resolved")
    contributions = Contributions.load(tmp_path / "out")
    assert contributions.ids == ("0.png", "1.png", "3.png", "4.png")
    assert contributions.origin.skipped[0][0] == "2.png"
    assert contributions.origin.model == MODEL[0] and len(contributions.origin.weights_hash) == 64
    assert contributions.origin.loading.options == {"random_weights": True, "seed": 0}
    assert imread(tmp_path / "out" / "contributions.png").ndim == 3
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_decompose_json_is_all_of_standard_output(run, photos):
    chosen = ("--select", "kind:head", "--select", "last:1")
    result = run("decompose", *MODEL, photos, "--json", "--no-figure", *chosen)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["images"] == 4 and said["skipped"][0]["id"] == "2.png"
    assert said["total_share"] == pytest.approx(1, abs=1e-4) and said["lumped_share"] == 0
    assert {row["kind"] for row in said["rows"]} >= {"head", "rest"}
    assert said["coverage"]["resolved"] == said["coverage"]["attention_layers"] > 0
    assert said["files"] == {
        "tensors": "unweave-out/timm_test_vit/contributions.safetensors",
        "card": "unweave-out/timm_test_vit/contributions.json",
    }
    assert json.loads(Path(said["files"]["card"]).read_text())["selection"] == "kind:head, last:1"


def test_options_arrive(run, photos, monkeypatch):
    given = {}
    load, plan = models.opened, unweave.plan

    def loading(loading, **options):
        if isinstance(loading, unweave.Model):
            return load(loading, **options)
        given.update(asdict(loading), **options)
        known = replace(loading, checkpoint=None, checkpoint_key=None, representation=None, random_weights=True)
        return load(known, **options)

    def planning(model, **options):
        given.update(options)
        return plan(model)

    monkeypatch.setattr(models, "opened", loading)
    monkeypatch.setitem(unweave.__dict__, "plan", planning)
    Path("w.safetensors").touch()
    options = "--checkpoint w.safetensors --checkpoint-key teacher --seed 3 --image-size 96x160 --representation 0 "
    options += "--pool mean --attention stop --nonlinear freeze --strict"
    result = run("decompose", MODEL[0], photos, *options.split(), "--dtype", "float64", "--limit", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert given.pop("id") == MODEL[0] and given.pop("checkpoint") == str(Path("w.safetensors").resolve())
    assert given == {
        "random_weights": False, "seed": 3, "image_size": (96, 160), "checkpoint_key": "teacher",
        "representation": 0, "pool": "mean", "device": "cpu", "dtype": "float64",
        "level": "head", "select": None, "attention": "stop", "nonlinear": "freeze", "strict": True,
    }  # fmt: skip
    contributions = Contributions.load("unweave-out/timm_test_vit")
    assert contributions.values.dtype == torch.float64 and len(contributions.ids) == 2


def test_without_images_samples_are_used_and_said(run):
    result = run("decompose", *MODEL, "--output", "x.safetensors")
    assert result.exit_code == 0, result.output
    assert "drawn samples" in result.stderr
    assert Contributions.load("x.safetensors").ids[0] == "sample/sunset-at-sea"
    assert imread("x.png").ndim == 3


@pytest.mark.parametrize("level", ["token", "neuron"])
def test_fine_levels_warn_of_their_size(run, level):
    result = run("decompose", *MODEL, "--level", level, "--no-figure", "--limit", 1)
    assert result.exit_code == 0 and "warning: 1 images x " in result.stderr


def test_broken_image_stops_when_asked(run, photos, tmp_path):
    result = run("decompose", *MODEL, photos, "--on-error", "raise")
    assert result.exit_code == 2
    assert in_order(result.stderr, "error: ", "known format", "2.png") and result.stdout == ""
    assert not (tmp_path / "unweave-out").exists()


def test_no_readable_image(run, tmp_path):
    (tmp_path / "a.jpg").touch()
    result = run("decompose", *MODEL, "a.jpg")
    assert result.exit_code == 2 and "None of the 1 images could be read (a.jpg: The file is empty.)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_bad_folder(run, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    result = run("decompose", *MODEL, tmp_path / kind)
    assert result.exit_code == 2 and str(tmp_path / kind) in result.stderr and "Traceback" not in result.output


def stopping(monkeypatch, error):
    """The second batch of one image ends with an error."""
    runs, calls = Plan.run, []

    def stopped(self, images, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return runs(self, images, *arguments, **options)

    monkeypatch.setattr("unweave.extraction.contributions.batch_of", lambda *arguments: 1)
    monkeypatch.setattr(Plan, "run", stopped)


def test_interrupt_leaves_nothing_and_says_so(run, photos, tmp_path, monkeypatch):
    stopping(monkeypatch, KeyboardInterrupt())
    result = run("decompose", *MODEL, photos)
    assert result.exit_code == 130 and "Interrupted. Nothing was written." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


SLOW = """
import signal, time
import unweave.extraction.contributions as extraction
from unweave.cli import main
from unweave.decomposition import Plan
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
extraction.batch_of = lambda *arguments: 1
run = Plan.run
def slow(self, *arguments, **options):
    time.sleep(0.2)
    return run(self, *arguments, **options)
Plan.run = slow
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing(photos, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "decompose", *MODEL, photos, *[photos / "1.png"] * 8, "-o", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("out/.*.partial*")):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_interrupt_in_the_figure_keeps_the_numbers(run, photos, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("unweave.contributions.share_figure", stop)
    result = run("decompose", *MODEL, photos, "-o", "out")
    assert result.exit_code == 130 and "What was written: out/contributions.safetensors" in result.stderr
    assert len(Contributions.load("out").ids) == 4


def test_out_of_memory_says_what_to_do(run, photos, tmp_path, monkeypatch):
    stopping(monkeypatch, torch.OutOfMemoryError("too much"))
    result = run("decompose", *MODEL, photos)
    assert result.exit_code == 2 and "does not hold a batch of 1 images" in result.stderr
    assert "select fewer components" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_full_disk_is_said_before_the_run(run, photos, monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 0))
    monkeypatch.setattr(Plan, "run", None)
    result = run("decompose", *MODEL, photos)
    assert result.exit_code == 2 and "lacks the room" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_no_cuda_here(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("decompose", *MODEL, "--device", "cuda")
    assert result.exit_code == 2 and "no CUDA device" in result.stderr


@pytest.mark.parametrize("verb", ["explain", "decompose"])
def test_errors_are_messages(run, verb, monkeypatch):
    def refuse(loading, **options):
        raise ModelError("There is no model 'vit [x]'.", where="timm/vit [x]", cure="the nearest: vit")

    monkeypatch.setitem(unweave.__dict__, "load_model", refuse)
    monkeypatch.setattr(models, "opened", refuse)
    result = run(verb, "timm/vit", "--json")
    assert result.exit_code == 2 and result.stdout == ""
    assert in_order(result.stderr, "error: There is no model 'vit [x]'.", "at: timm/vit [x]", "try: the nearest: vit")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain",),
        ("explain", "m", "--level", "pixel"),
        ("explain", "m", "--attention", "around"),
        ("explain", "m", "--checkpoint", "none.safetensors"),
        ("explain", "m", "--nothing"),
        ("decompose", "m", "--limit", "0"),
        ("decompose", "m", "--limit", "x"),
        ("decompose", "m", "--dtype", "int8"),
        ("decompose", "m", "--on-error", "cry"),
        ("unknown",),
    ],
)
def test_bad_options(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr and result.stderr


def test_explain(run):
    result = run("explain", *MODEL)
    assert result.exit_code == 0, result.output
    heading = ("timm/test_vit: ", "components at level head", "Components of each layer", "blocks.0.attn")
    assert in_order(result.stdout, *heading, "layers resolved", "MiB per image", "of constants")
    assert in_order(result.stdout, "Operations on the path", "aten.linear", "linear")


def test_explain_says_where_nothing_can_be_followed(run):
    result = run("explain", "timm/resnet10t", "--random-weights")
    assert result.exit_code == 0, result.output
    assert in_order(result.stdout, "Where nothing can be followed", "aten.relu", "it is not linear")
    assert in_order(result.stdout, "with nonlinear='freeze': ", "4 conv, 1 embed", "per image")


def test_explain_json(run):
    said = json.loads(run("explain", *MODEL, "--json").stdout)
    assert "blocks.0.attn.head.0" in [component["name"] for component in said["components"]]


def test_models(run):
    result = run("models")
    assert result.exit_code == 0 and in_order(result.stdout, "timm/NAME", "open_clip/ARCH/TAG", "unweave explain timm/")
    libraries = json.loads(run("models", "--json").stdout)["libraries"]
    assert {library["prefix"] for library in libraries} >= {"timm", "open_clip", "hf", "torchvision"}


def test_models_are_searched_for_how_far_they_are_resolved(run):
    result = run("models", "--search", "DINOv3 ViT")
    assert result.exit_code == 0, result.output
    said = "timm/vit_base_patch16_dinov3", "144 head, 12 mlp", "12 of 12 layers resolved", "error:", "regions: yes"
    assert in_order(result.stdout, *said)
    rows = json.loads(run("models", "--search", "dinov3", "--json").stdout)["rows"]
    assert {"hf/DINOv3ViTModel", "timm/vit_base_patch16_dinov3"} <= {row["id"] for row in rows if row["whole"]}
    missed = run("models", "--search", "no such model")
    assert missed.exit_code == 2 and in_order(missed.stderr, "'no such model'", "the nearest", "--random-weights")


def test_help_is_quick_and_imports_no_torch():
    program = "import sys; from unweave.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time and not the clock's, which counts whatever else the machine is doing.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "decompose" in done.stdout and done.stdout.splitlines()[-1] == "False"
    assert min(times) < 0.5


def test_version(run):
    assert run("--version").stdout.strip() == f"unweave {unweave.__version__}"
