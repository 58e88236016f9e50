"""What the verbs print, write and refuse, with a model and a plan that are not real."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import unweave
from unweave import Contributions
from unweave.errors import ModelError


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


def test_decompose(run, plan, photos, tmp_path):
    result = run("decompose", "timm/fake", photos, "-o", "out", "--batch-size", 3, "--top", 2)
    assert result.exit_code == 0, result.output
    assert [shape[0] for shape, _ in plan.batches] == [3, 1]
    assert in_order(result.stdout, "Largest shares", "blocks.1.mlp", "7 others", "all 9", "100.00 %")
    assert in_order(
        result.stdout,
        "1 images were left out",
        "2.png",
        "known format",
        "2 of 3 layers",
        "lumped: 0.00 %",
        "4 images in",
    )
    assert "within 1.0e-07" in result.stdout
    contributions = Contributions.load(tmp_path / "out")
    assert contributions.ids == ("0.png", "1.png", "3.png", "4.png")
    assert contributions.origin.skipped[0][0] == "2.png"
    assert contributions.origin.model == "timm/fake" and contributions.origin.weights_hash == "f00d"
    assert imread(tmp_path / "out" / "contributions.png").ndim == 3
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_decompose_json_is_all_of_standard_output(run, plan, photos):
    result = run(
        "decompose", "timm/fake", photos, "--json", "--no-figure", "--select", "kind:head", "--select", "last:1"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["images"] == 4 and found["skipped"][0]["id"] == "2.png"
    assert found["top"][0]["name"] == "blocks.1.mlp" and found["total_share"] == pytest.approx(1)
    assert found["attention"]["resolved"] == 2 and found["lumped_share"] == 0
    assert found["files"] == {
        "contributions": "unweave-out/timm_fake/contributions.safetensors",
        "card": "unweave-out/timm_fake/contributions.json",
    }
    assert plan.arguments["select"] == ["kind:head", "last:1"]
    assert json.loads(Path(found["files"]["card"]).read_text())["selection"] == "kind:head, last:1"
    assert "a library that prints" in result.stderr


def test_options_arrive(run, plan, photos, tmp_path):
    (tmp_path / "w.safetensors").touch()
    options = "--checkpoint w.safetensors --seed 3 --image-size 64 --attention stop --nonlinear freeze --strict"
    result = run("decompose", "m", photos, *options.split(), "--dtype", "float64", "--limit", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    arguments = plan.arguments
    assert str(arguments.pop("checkpoint")) == "w.safetensors"
    assert arguments == {
        "random_weights": False, "seed": 3, "image_size": 64, "device": "cpu", "dtype": torch.float64,
        "level": "head", "select": None, "attention": "stop", "nonlinear": "freeze", "strict": True,
    }  # fmt: skip
    assert plan.batches == [((2, 3, 8, 8), torch.float64)]
    assert Contributions.load(tmp_path / "unweave-out" / "m").values.dtype == torch.float64


def test_without_images_samples_are_used_and_said(run, plan):
    result = run("decompose", "timm/fake", "--output", "x.safetensors")
    assert result.exit_code == 0, result.output
    assert "drawn samples" in result.stderr
    assert Contributions.load("x.safetensors").ids[0] == "sample/sunset-at-sea"
    assert imread("x.png").ndim == 3


@pytest.mark.parametrize("level", ["token", "neuron"])
def test_fine_levels_warn_of_their_size(run, plan, level):
    result = run("decompose", "timm/fake", "--level", level, "--no-figure")
    size = 8 * 4 * (9 * 16 + 16 + 1)
    assert f"warning: 8 images x 9 components x 16 numbers take 5.2 kB on disk ({size:,} bytes)" in result.stderr


def test_broken_image_stops_when_asked(run, plan, photos, tmp_path):
    result = run("decompose", "timm/fake", photos, "--on-error", "raise")
    assert result.exit_code == 2
    assert in_order(result.stderr, "error: ", "known format", "2.png") and result.stdout == ""
    assert not (tmp_path / "unweave-out").exists()


def test_no_readable_image(run, plan, tmp_path):
    (tmp_path / "a.jpg").touch()
    result = run("decompose", "timm/fake", "a.jpg")
    assert result.exit_code == 2 and "None of the 1 images could be read (a.jpg: The file is empty.)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_bad_folder(run, plan, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    result = run("decompose", "timm/fake", tmp_path / kind)
    assert result.exit_code == 2 and str(tmp_path / kind) in result.stderr and "Traceback" not in result.output


def interrupt(plan):
    if len(plan.batches) == 2:
        raise KeyboardInterrupt


def test_interrupt_leaves_nothing_and_says_so(run, plan, photos, tmp_path):
    plan.before = interrupt
    result = run("decompose", "timm/fake", photos, "--batch-size", 1)
    assert result.exit_code == 130 and "Interrupted. Nothing was written." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


SLOW = """
import signal, time, conftest, unweave
from unweave.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
plan = conftest.FakePlan(before=lambda plan: time.sleep(0.2))
unweave.load_model, unweave.plan = (lambda id, **options: conftest.FakeModel(id)), (lambda model, **options: plan)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing(photos, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "decompose", "m", photos, photos / "1.png", "-o", "out", "--batch-size", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("out/.*.partial*")):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_interrupt_in_the_figure_keeps_the_numbers(run, plan, photos, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("unweave.figures.share_figure", stop)
    result = run("decompose", "timm/fake", photos, "-o", "out")
    assert result.exit_code == 130 and "complete in out/contributions.safetensors" in result.stderr
    assert len(Contributions.load("out").ids) == 4


def test_out_of_memory_says_what_to_do(run, plan, photos, tmp_path):
    def fail(plan):
        raise torch.OutOfMemoryError("too much")

    plan.before = fail
    result = run("decompose", "timm/fake", photos)
    assert result.exit_code == 2 and "--batch-size" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_full_disk_is_said_before_the_run(run, plan, photos, monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 0))
    result = run("decompose", "timm/fake", photos)
    assert result.exit_code == 2 and "lacks the room" in result.stderr and not plan.batches
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_no_cuda_here(run, plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("decompose", "timm/fake", "--device", "cuda")
    assert result.exit_code == 2 and "no CUDA device" in result.stderr


@pytest.mark.parametrize("verb", ["explain", "decompose"])
def test_errors_are_messages(run, plan, verb, monkeypatch):
    def refuse(id, **options):
        raise ModelError("There is no model 'vit [x]'.", where="timm/vit [x]", cure="the nearest: vit")

    monkeypatch.setitem(unweave.__dict__, "load_model", refuse)
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
        ("decompose", "m", "--batch-size", "0"),
        ("decompose", "m", "--limit", "x"),
        ("decompose", "m", "--dtype", "int8"),
        ("decompose", "m", "--on-error", "cry"),
        ("unknown",),
    ],
)
def test_bad_options(run, plan, arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr and result.stderr


def test_explain(run, plan):
    result = run("explain", "timm/fake", "--random-weights")
    assert result.exit_code == 0, result.output
    assert in_order(result.stdout, "timm/fake: 9 components at level head, 16 dim", "0 ... 1", "blocks.0.attn")
    assert in_order(
        result.stdout, "2 of 3 layers", "pool: it reads [one] token", "1.2 MB per image", "999 B of constants"
    )
    assert in_order(result.stdout, "aten.linear", "linear", "12", "the model, blocks.0.mlp", "dense fall-backs")
    assert in_order(
        result.stdout, "aten.cumsum", "neck", "model.py:7", "no rule for [aten.cumsum]", "@rule(aten.cumsum)"
    )
    assert plan.arguments["random_weights"] is True and plan.arguments["select"] is None


def test_explain_json(run, plan):
    result = run("explain", "timm/fake", "--json")
    assert json.loads(result.stdout)["components"][1]["name"] == "blocks.0.attn.head.0"


def test_models(run):
    result = run("models")
    assert result.exit_code == 0 and in_order(result.stdout, "timm/NAME", "open_clip/ARCH/TAG", "unweave explain timm/")
    libraries = json.loads(run("models", "--json").stdout)["libraries"]
    assert {library["prefix"] for library in libraries} >= {"timm", "open_clip", "hf", "torchvision"}


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
