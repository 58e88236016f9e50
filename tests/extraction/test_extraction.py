"""From images to a store: every image once, the same bytes whoever computes them, and nothing without a reason."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import unweave
from stores import SMALL, draw, model, remembered
from unweave import Contributions
from unweave.errors import ArgumentError, DataError, StoreError, UnweaveError
from unweave.extraction import Part, Settings, estimate, extract, job, prepare, verify
from unweave.images import open_images
from unweave.images.batches import decoded, preprocessed
from unweave.store import Place, Store, lease, writer
from unweave.store.blocks import file
from unweave.store.lease import Lease, holders

pytestmark = pytest.mark.xdist_group("extraction")


@pytest.fixture(autouse=True)
def plans_are_made_once(monkeypatch):
    monkeypatch.setattr(job, "plans_of", remembered)


@pytest.fixture
def photos(tmp_path):
    return draw(tmp_path / "photos", 11)


def content(place):
    """All that a store holds, without what says when it was made."""
    store = Store(place)
    return (
        {level: store.view(level).values().numpy().tobytes() for level in store.manifest.levels},
        store.view().representation.numpy().tobytes(),
        store.view().logits.numpy().tobytes(),
        store.table.to_pydict(),
        store.skipped,
    )


# --- what is stored


def test_the_store_holds_what_the_plan_gives(photos, tmp_path):
    store = extract(model(), str(photos), tmp_path / "s", replace(SMALL, levels=("head", "layer"), dtype="float32"))
    assert store.ids == [f"{number:04}.png" for number in range(11)]
    found = [tensor for _, tensor in decoded(open_images(str(photos)), partial(preprocessed, model()), ahead=4)]
    for level in ("head", "layer"):
        plan = remembered(model(), ("head", "layer"), None, attention="through", nonlinear="stop")[level]
        expected = plan.run(torch.stack(found))
        stored = Contributions.of(store.view(level))
        assert stored.components == expected.components
        assert (stored.values - expected.values).abs().max() < 1e-6
        assert torch.equal(store.view(level).select("*blocks.1.*").values(), stored["*blocks.1.*"].values.float())
    assert (store.view().representation - expected.representation).abs().max() < 1e-6
    with torch.no_grad():
        assert (store.view().logits - model().module(torch.stack(found))).abs().max() < 1e-5
    total = store.view().values().sum(1) - store.view().representation
    assert (total.norm(dim=-1) / store.view().representation.norm(dim=-1)).max() < 1e-5


def test_what_rounding_costs_is_recorded(photos, tmp_path):
    exact = extract(model(), str(photos), tmp_path / "a", replace(SMALL, dtype="float32"))
    rounded = extract(model(), str(photos), tmp_path / "b", SMALL)
    moved = (exact.view().values() - rounded.view().values().float()).sum(1).norm(dim=-1)
    expected = moved / exact.view().representation.norm(dim=-1)
    recorded = torch.tensor(rounded.field("rounding"))
    assert torch.allclose(recorded, expected, rtol=1e-3) and 1e-6 < float(recorded.max()) < 1e-2
    assert max(exact.field("rounding")) == 0


def test_a_selection_keeps_the_sum(photos, tmp_path):
    settings = replace(SMALL, select=("*blocks.1.*",), dtype="float32")
    store = extract(model(), str(photos), tmp_path / "s", settings)
    assert store.components()[-1].kind == "rest" and store.manifest.selection == ("*blocks.1.*",)
    assert (store.view().values().sum(1) - store.view().representation).abs().max() < 1e-5


def test_broken_images_are_recorded_and_the_others_stay_themselves(photos, tmp_path):
    (photos / "0002.png").write_bytes(b"nothing")
    (photos / "0007.png").write_bytes(b"")
    store = extract(model(), str(photos), tmp_path / "s", SMALL)
    assert [name for name, _ in store.skipped] == ["0002.png", "0007.png"]
    assert "known format" in store.skipped[0][1] and "empty" in store.skipped[1][1]
    whole = extract(model(), str(draw(tmp_path / "whole", 11)), tmp_path / "w", SMALL)
    assert torch.allclose(store.view().values().float(), whole.view().rows(store.ids).values().float(), atol=1e-3)
    with pytest.raises(DataError, match="known format"):
        extract(model(), str(photos), tmp_path / "t", replace(SMALL, on_error="raise"))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_any_number_of_images(tmp_path, count):
    store = extract(model(), str(draw(tmp_path / "p", count)), tmp_path / "s", SMALL)
    assert len(store) == count and store.manifest.blocks == -(-count // 4)


def test_no_image_is_an_error(tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(DataError, match="empty"):
        extract(model(), str(tmp_path / "p"), tmp_path / "s", SMALL)
    assert not (tmp_path / "s").exists()


def test_a_number_too_large_for_the_store_is_an_error(photos, tmp_path, monkeypatch):
    run = unweave.Plan.run if hasattr(unweave, "Plan") else type(remembered(model(), ("head",), None)["head"]).run

    def large(self, images, ids=None, **options):
        found = run(self, images, ids, **options)
        return replace(found, values=found.values * 1e6)

    monkeypatch.setattr(type(remembered(model(), ("head",), None)["head"]), "run", large)
    with pytest.raises(StoreError, match="too large for float16") as caught:
        extract(model(), str(photos), tmp_path / "s", SMALL)
    assert "--store-dtype float32" in str(caught.value)


def test_a_store_at_a_url(photos, tmp_path):
    url = f"memory://{tmp_path}/store"
    there, here = (extract(model(), str(photos), place, SMALL) for place in (url, tmp_path / "s"))
    assert torch.equal(there.view().values(), here.view().values()) and there.ids == here.ids
    assert extract(model(), str(photos), url, SMALL).ids == here.ids
    assert verify(there, rows=4, model=model(), images={0: open_images(str(photos))}).faults == []


# --- going on


def test_what_is_done_is_not_done_again(photos, tmp_path, monkeypatch):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    before = content(tmp_path / "s")
    monkeypatch.setattr(writer, "put", lambda *given: pytest.fail("a block was computed again"))
    extract(model(), str(photos), tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == before


def test_an_interrupted_extraction_goes_on(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "whole", SMALL)

    def interrupt(what, done, total):
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(model(), str(photos), tmp_path / "s", SMALL, on_progress=interrupt)
    assert not holders(Place(tmp_path / "s")) and writer.done(Place(tmp_path / "s")) == {0}
    extract(model(), str(photos), tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_file_without_its_record_is_written_again(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    before = content(tmp_path / "s")
    (tmp_path / "s/index.parquet").unlink()
    (tmp_path / "s" / writer.record_file(1)).unlink()
    (tmp_path / "s" / file("contributions/head", 1)).write_bytes(b"half of i")
    extract(model(), str(photos), tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == before


def test_new_images_are_appended_and_known_ones_skipped(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    first = Store(tmp_path / "s").view().values()
    draw(photos, 6, first=100)
    with pytest.raises(StoreError, match="6 are new and 0 are gone") as caught:
        extract(model(), str(photos), tmp_path / "s", SMALL)
    assert "--append" in str(caught.value)
    store = extract(model(), str(photos), tmp_path / "s", SMALL, append=True)
    assert store.ids == [f"{number:04}.png" for number in [*range(11), *range(100, 106)]]
    assert torch.equal(store.view().rows(slice(11)).values(), first)
    alone = extract(model(), str(draw(tmp_path / "new", 6, first=100)), tmp_path / "n", SMALL)
    assert torch.equal(store.view().rows(alone.ids).values(), alone.view().values())
    again = extract(model(), str(photos), tmp_path / "s", SMALL, append=True)
    assert again.ids == store.ids and len(again.manifest.listings) == 2


def test_an_interrupted_append_goes_on(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    draw(photos, 6, first=100)

    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(model(), str(photos), tmp_path / "s", SMALL, append=True, on_progress=interrupt)
    assert len(extract(model(), str(photos), tmp_path / "s", SMALL, append=True)) == 17


def test_images_that_have_gone_or_changed_are_noticed(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    (photos / "0003.png").unlink()
    with pytest.raises(StoreError, match="0 are new and 1 are gone"):
        extract(model(), str(photos), tmp_path / "s", SMALL)
    Image.new("RGB", (99, 99)).save(photos / "0003.png")
    with pytest.raises(StoreError, match="have changed"):
        extract(model(), str(photos), tmp_path / "s", SMALL)


def test_an_image_that_goes_while_it_is_extracted_is_recorded(photos, tmp_path):
    extraction = prepare(model(), str(photos), tmp_path / "s", SMALL)
    (photos / "0009.png").unlink()
    extraction.run()
    assert [name for name, _ in Store(tmp_path / "s").skipped] == ["0009.png"]


# --- whose store it is


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"levels": ("layer",)}, "levels"),
        ({"select": ("*blocks.0.*",)}, "selection"),
        ({"dtype": "float32"}, "dtype"),
        ({"attention": "stop"}, "attention"),
    ],
)
def test_another_setting_is_refused_by_name(photos, tmp_path, changed, field):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    with pytest.raises(StoreError, match=f"differs in its {field}"):
        extract(model(), str(photos), tmp_path / "s", replace(SMALL, **changed))


def test_another_model_is_refused_by_its_weights(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    other = copy.deepcopy(model())
    next(other.module.parameters()).data.mul_(2)
    with pytest.raises(StoreError, match="differs in its weights hash"):
        extract(other, str(photos), tmp_path / "s", SMALL)


@pytest.mark.parametrize("edit", ["in place", "data", "assigned"])
def test_a_model_that_was_edited_since_is_another(photos, tmp_path, edit):
    own = copy.deepcopy(model())
    stored = extract(own, str(photos), tmp_path / "s", SMALL).view().values()
    prepared = prepare(own, str(photos), tmp_path / "other", SMALL)
    name, weight = next((name, own) for name, own in own.module.named_parameters() if name.endswith("norm.weight"))
    if edit == "in place":
        with torch.no_grad():
            weight.mul_(2)
    elif edit == "data":
        weight.data.mul_(2)
    else:
        own.module.load_state_dict({name: 2 * weight.detach()}, strict=False, assign=True)
    draw(photos, 4, first=40)
    with pytest.raises(StoreError, match="differs in its weights hash"):
        extract(own, str(photos), tmp_path / "s", SMALL, append=True)
    with pytest.raises(StoreError, match="differs in its weights hash"):
        prepared.run()
    assert torch.equal(Store(tmp_path / "s").view().values(), stored)


def test_the_batch_of_the_store_is_kept(photos, tmp_path):
    """Other numbers of images at a time may round differently."""
    extract(model(), str(photos), tmp_path / "s", SMALL)
    draw(photos, 3, first=50)
    store = extract(model(), str(photos), tmp_path / "s", replace(SMALL, batch=1, rows=2), append=True)
    assert store.manifest.batch == 3 and store.manifest.rows == 4


def test_a_folder_of_something_else_is_left_alone(photos, tmp_path):
    with pytest.raises(StoreError, match="holds something else"):
        extract(model(), str(photos), photos, SMALL)
    assert sorted(path.name for path in photos.iterdir())[0] == "0000.png" and len(list(photos.iterdir())) == 11


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"levels": ()}, "no levels"),
        ({"levels": ("head", "head")}, "no levels"),
        ({"batch": 0}, "a batch of 0"),
        ({"rows": -1}, "a block of -1"),
    ],
)
def test_settings_that_cannot_be(settings, what):
    with pytest.raises(ArgumentError, match=what):
        Settings(**settings)


# --- several at once


def test_parts_cover_everything_once(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "whole", SMALL)
    for number in (3, 1, 2):
        prepare(model(), str(photos), tmp_path / "s", SMALL).run(Part(number, 3))
        assert (tmp_path / "s/index.parquet").is_file() == (number == 2)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_parts_that_cannot_be(text):
    with pytest.raises(ArgumentError, match="no part"):
        Part.parse(text)
    assert Part.parse("2/3") == Part(2, 3)


def test_a_second_extraction_refuses_by_name_or_waits(photos, tmp_path):
    extraction = prepare(model(), str(photos), tmp_path / "s", SMALL)
    waiting = prepare(model(), str(photos), tmp_path / "s", replace(SMALL, wait=30.0))
    with extraction.lease(Part()):
        with pytest.raises(StoreError, match=f"process {os.getpid()} on ") as caught:
            extraction.run()
        assert "part 1-of-1" in str(caught.value)
        with pytest.raises(StoreError, match="part 1-of-1"):
            extraction.run(Part(1, 2))
        with pytest.raises(StoreError, match="part 1-of-1"):
            prepare(model(), str(draw(photos, 1, first=77)), tmp_path / "s", SMALL, append=True)
        (photos / "0077.png").unlink()
        thread = threading.Thread(target=waiting.run)
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive() and not writer.done(extraction.place)
    thread.join()
    assert len(Store(tmp_path / "s")) == 11


def test_parts_may_be_worked_on_side_by_side(photos, tmp_path):
    extraction = prepare(model(), str(photos), tmp_path / "s", SMALL)
    with extraction.lease(Part(1, 2)), extraction.lease(Part(2, 2)):
        assert sorted(holders(extraction.place)) == ["1-of-2", "2-of-2"]
    assert not holders(extraction.place)


def test_a_lease_of_the_dead_is_void(tmp_path, monkeypatch):
    place = Place(tmp_path)
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    now = time.time()
    holder = {"host": lease.socket.gethostname(), "process": int(process.stdout), "since": now, "alive": now}
    place.write("leases/1-of-1.json", json.dumps(holder).encode())
    with Lease(place, "1-of-1"):
        assert holders(place)["1-of-1"].process == os.getpid()
    elsewhere = holder | {"host": "elsewhere"}
    place.write("leases/1-of-1.json", json.dumps(elsewhere).encode())
    with pytest.raises(StoreError, match="on elsewhere"), Lease(place, "1-of-1"):
        pass
    place.write("leases/1-of-1.json", json.dumps(elsewhere | {"alive": now - lease.PATIENCE - 1}).encode())
    with Lease(place, "1-of-1"):
        pass


def test_a_lease_breathes(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BREATH", 0.05)
    with Lease(Place(tmp_path), "1-of-1"):
        first = holders(Place(tmp_path))["1-of-1"].alive
        time.sleep(0.4)
        assert holders(Place(tmp_path))["1-of-1"].alive > first


# --- before and after


def test_a_dry_run_writes_nothing_and_counts_the_bytes(photos, tmp_path):
    found = estimate(model(), str(photos), tmp_path / "s", SMALL)
    assert not (tmp_path / "s").exists()
    assert found.images == 11 and found.stored == 0 and found.seconds > 0
    store = extract(model(), str(photos), tmp_path / "s", SMALL)
    assert store.about()["bytes"] == found.bytes
    again = estimate(model(), str(photos), tmp_path / "s", SMALL)
    assert again.stored == 11 and again.bytes == again.seconds == 0
    json.dumps(found.about())


def test_a_sound_store_is_found_sound(photos, tmp_path):
    store = extract(model(), str(photos), tmp_path / "s", replace(SMALL, levels=("head", "layer")))
    found = verify(store, rows=5, model=model(), images={0: open_images(str(photos))})
    widths = sum(len(store.components(level)) for level in store.manifest.levels)
    assert found.faults == [] and found.chunks == 3 * (widths + 2) and 5 <= found.rows == found.equal


def test_damage_is_found_and_named_and_mended(photos, tmp_path):
    store = extract(model(), str(photos), tmp_path / "s", SMALL)
    before = content(tmp_path / "s")
    path = tmp_path / "s" / file("contributions/head", 1)
    data = bytearray(path.read_bytes())
    chunk = 4 * store.manifest.dim * 2
    data[len(data) - len(store.components()) * chunk + 3 * chunk + 5] ^= 1
    path.write_bytes(data)
    found = verify(Store(tmp_path / "s"), rows=0)
    assert len(found.faults) == 1
    assert f"component {store.components()[3]}" in found.faults[0] and "block 1" in found.faults[0]
    assert "verify STORE --repair" in found.faults[0]
    assert verify(Store(tmp_path / "s"), rows=0, repair=True).faults == found.faults
    assert verify(Store(tmp_path / "s", partial=True), rows=0).faults[0].startswith("block 1 is missing")
    extract(model(), str(photos), tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == before and verify(Store(tmp_path / "s"), rows=0).faults == []
    path.write_bytes(data[:20])
    assert "has 20 bytes" in verify(Store(tmp_path / "s"), rows=0).faults[0]


@pytest.mark.parametrize(
    "name",
    [
        file("contributions/head", 1),
        file("representation", 2),
        "records/00000001.parquet",
        "components-head.parquet",
        "listings/0000.parquet",
        "index.parquet",
    ],
)
@pytest.mark.parametrize("damage", ["gone", "short", "long", "other"])
def test_what_is_damaged_is_made_anew_by_the_same_extraction(photos, tmp_path, name, damage):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    before, path = content(tmp_path / "s"), tmp_path / "s" / name
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "short":
            path.write_bytes(data[:-9])
        case "long":
            path.write_bytes(data[:50] + b"7 bytes" + data[50:])
        case "other":
            path.write_bytes(b"PAR1 nothing")
    if name != "index.parquet" or damage != "gone":
        with pytest.raises(StoreError) as caught:
            if name.startswith(("records", "listings")):
                (tmp_path / "s/index.parquet").unlink()
            Contributions.of(Store(tmp_path / "s").view())
        assert "run the same `unweave extract` again" in str(caught.value)
    extract(model(), str(photos), tmp_path / "s", SMALL)
    assert content(tmp_path / "s") == before
    assert verify(Store(tmp_path / "s"), rows=0).faults == []


def test_a_verification_that_compares_nothing_fails(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    for path in (tmp_path / "s/records").iterdir():
        path.unlink()
    found = verify(Store(tmp_path / "s"), rows=0)
    assert (
        len(found.faults) == 4 and "block 0 is missing" in found.faults[0] and "nothing was compared" in found.faults[3]
    )


def test_images_that_are_others_now_are_found(photos, tmp_path):
    store = extract(model(), str(photos), tmp_path / "s", SMALL)
    draw(tmp_path / "other", 11, first=50)
    for number in range(11):
        (tmp_path / f"other/{number + 50:04}.png").replace(photos / f"{number:04}.png")
    found = verify(store, rows=11, model=model(), images={0: open_images(str(photos))})
    assert len(found.faults) == 11 and all("away" in fault for fault in found.faults)
    (photos / "0000.png").write_bytes(b"x")
    assert any(
        "0000.png" in fault and "format" in fault
        for fault in verify(store, rows=11, model=model(), images={0: open_images(str(photos))}).faults
    )


# --- where there is no room


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(photos, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UnweaveError, match="1,000 are free"):
        extract(model(), str(photos), tmp_path / "s", SMALL)
    assert not (tmp_path / "s/manifest.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_disk_that_fills_up_loses_nothing(photos, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(small)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        filler = small / "filler"
        extraction = prepare(model(), str(photos), small / "s", SMALL)
        filler.write_bytes(b"x" * 4096)
        with pytest.raises(StoreError, match="No space left") as caught, filler.open("ab") as file:
            monkeypatch.setattr(writer, "put", _filling(file, writer.put))
            extraction.run()
        assert "is kept" in str(caught.value)
        there = writer.done(extraction.place)
        assert there and 2 not in there
        filler.unlink()
        monkeypatch.undo()
        monkeypatch.setattr(job, "plans_of", remembered)
        extract(model(), str(photos), small / "s", SMALL)
        extract(model(), str(photos), tmp_path / "whole", SMALL)
        assert content(small / "s") == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _filling(file, put):
    def full(place, manifest, block):
        if block.number == 2:
            try:
                while True:
                    file.write(b"x" * 1024)
                    file.flush()
            except OSError:
                pass
        put(place, manifest, block)

    return full


def test_a_store_that_may_not_be_written_is_refused(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    draw(photos, 2, first=60)
    for path in (tmp_path / "s").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "s").chmod(0o555)
    try:
        if os.access(tmp_path / "s/leases", os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StoreError, match="Permission denied"):
            extract(model(), str(photos), tmp_path / "s", SMALL, append=True)
        assert len(Store(tmp_path / "s")) == 11
    finally:
        for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
            path.chmod(0o755)


def test_a_read_only_file_system_is_refused(photos, tmp_path):
    extract(model(), str(photos), tmp_path / "s", SMALL)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    bind = [["mount", "--bind", str(tmp_path / "s"), str(mounted)], ["mount", "-o", "remount,bind,ro", str(mounted)]]
    if os.geteuid() or any(subprocess.run(command, capture_output=True).returncode for command in bind):
        subprocess.run(["umount", str(mounted)], capture_output=True)
        pytest.skip("no file system may be mounted here")
    try:
        draw(photos, 2, first=60)
        with pytest.raises(StoreError, match="Read-only file system"):
            extract(model(), str(photos), mounted, SMALL, append=True)
        assert np.array_equal(Store(mounted).view().values(), Store(tmp_path / "s").view().values())
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


# --- other hands


def test_processes_write_the_same_bytes(tmp_path):
    settings = Settings(rows=8, batch=4, device="cpu")
    here = extract("pocket/deit", open_images("pocket/evaluation", limit=20), tmp_path / "a", settings)
    seen = []
    there = extract(
        "pocket/deit",
        open_images("pocket/evaluation", limit=20),
        tmp_path / "b",
        replace(settings, launcher="processes", workers=2),
        on_progress=lambda what, done, total: seen.append((done, total)),
    )
    assert seen[-1] == (20, 20) and seen == sorted(seen)
    assert torch.equal(here.view().values(), there.view().values()) and here.ids == there.ids


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    settings = Settings(rows=8, batch=4, launcher="processes", workers=1)
    extraction = prepare("pocket/deit", open_images("pocket/evaluation", limit=8), tmp_path / "s", settings)
    text = extraction.place.read("manifest.json").replace(b'"weights_hash": "', b'"weights_hash": "x')
    extraction.place.write("manifest.json", text)
    with pytest.raises(UnweaveError, match="differs in its weights hash"):
        extraction.run()
    with pytest.raises(UnweaveError, match="0 workers"):
        replace(extraction, settings=replace(settings, workers=0)).run()
