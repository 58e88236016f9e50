"""The likeliest slips of somebody at a Python prompt: what is meant is done, or the error says what to write instead.

They run in a process of its own, where no types are checked before unweave sees them.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SLIPS = {
    "plan.run(images[0])": "images[None]",
    "plan.run(unweave.open_images('pocket/world/0/2'))": "unweave.decompose(model, images)",
    "plan.run([1, 2])": "torch.stack",
    "plan.run(images, 'ab')": "['ab']",
    "plan.run(images, tolerance=float('nan'))": "tolerance",
    "plan.project(images, ['red'])": "text_space",
    "unweave.plan(5)": "unweave.load_model",
    "unweave.plan(model, select=5)": "`kind:KIND`",
    "unweave.decompose(model, 5)": "unweave.open_images",
    "unweave.decompose(model.module, 'pocket/world/0/2')": "Model.from_module",
    "unweave.Model.from_module(5)": "unweave.load_model",
    "unweave.Model.from_module(model.module, input_size=model.input_size, pool='max')": "'mean' or 'class'",
    "unweave.load_model(model.module)": "Model.from_module",
    "unweave.load_model('pocket/deit', seed=2**70)": "4,294,967,295",
    "unweave.load_model('timm/test_vit', random_weights=True, image_size=10**9)": "4,096",
    "unweave.load_model('pocket/deit', device='gpu')": "'cuda'",
    "unweave.open_images(['a.png', 'b.png'])": "find_images",
    "unweave.open_images('pocket/world/0/2', limit=0)": "limit of 1",
    "contributions[5]": "contributions.components[5]",
    "contributions[1:3]": "contributions.values[1:3]",
}
"""What is written, and what the error has to say."""

CODE = """
import pathlib, torch, unweave
from unweave.errors import ArgumentError, UnweaveError
model = unweave.load_model("pocket/deit")
plan, images = unweave.plan("pocket/deit"), model.example(2)
contributions = plan.run(images)
for slip, said in SLIPS.items():
    try:
        eval(slip)
    except UnweaveError as error:
        assert said in str(error), (slip, str(error))
    else:
        raise AssertionError(f"{slip} is no error")
assert contributions[contributions.components[5]].components == contributions.components[5:6]
pictures = unweave.open_images("pocket/world/0/9")
for meant in (pictures, "pocket/world/0/9"):
    found = unweave.decompose("pocket/deit", meant)
    assert found.ids == tuple(pictures.ids) and found.values.shape[0] == 9
    assert (found.values.sum(1) - found.representation).abs().max() < 1e-4
batch = torch.stack([model.preprocess(picture.read()) for picture in pictures])
assert torch.allclose(unweave.decompose("pocket/deit", batch).values, found.values, atol=1e-5)
pictures[0].read().save("a.png")
assert unweave.decompose(model, pathlib.Path("a.png")).ids == ("a.png",)
pathlib.Path("b.png").write_bytes(b"")
try:
    unweave.decompose(model, ".")
except UnweaveError as error:
    assert "b.png" in str(error)
else:
    raise AssertionError("an image that cannot be read is left out")
print("done")
"""


def test_slips(tmp_path: Path) -> None:
    script = tmp_path / "slips.py"
    script.write_text(f"SLIPS = {SLIPS!r}\n{textwrap.dedent(CODE)}")
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths!r}; exec(open({str(script)!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip().endswith("done"), done.stderr


@pytest.mark.parametrize("selection", [(), "!*"])
def test_selections_that_leave_nothing(selection: object) -> None:
    from unweave.components import Component, select
    from unweave.errors import ArgumentError

    with pytest.raises(ArgumentError):
        select((Component("a", "mlp"),), selection)
