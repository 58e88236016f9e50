"""Full precision on a GPU: the switches are turned while anybody computes, and only then."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest
import torch

from unweave.graph.precision import _FULL_PRECISION, exact

SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def switches() -> list[str]:
    return [switch.fp32_precision for switch in SWITCHES]


def test_switches_are_off_inside_and_as_they_were_after() -> None:
    before = switches()
    with exact(torch.device("cuda")):
        with exact(torch.device("cuda")):
            assert switches() == ["ieee"] * 3
        assert switches() == ["ieee"] * 3
    assert switches() == before


def test_switches_come_back_after_an_error() -> None:
    before = switches()
    with pytest.raises(RuntimeError, match="stop"), exact(torch.device("cuda")):
        raise RuntimeError("stop")
    assert switches() == before


def test_the_last_thread_to_leave_puts_them_back() -> None:
    before, inside, seen = switches(), Barrier(2), list[list[str]]()

    def first() -> None:
        with _FULL_PRECISION:
            inside.wait()
        inside.wait()

    thread = Thread(target=first)
    thread.start()
    with _FULL_PRECISION:
        inside.wait()
        inside.wait()
        seen.append(switches())
    thread.join()
    assert seen == [["ieee"] * 3]
    assert switches() == before


def test_the_older_switches_agree_and_come_back() -> None:
    """PyTorch reads them while it captures, and refuses to where they differ from the newer ones."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with exact(torch.device("cuda")):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_switches_that_somebody_mixed_are_left_as_they_were() -> None:
    conv, kept = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        before = switches()
        with pytest.raises(RuntimeError, match="mix"):
            assert torch.backends.cudnn.allow_tf32
        with exact(torch.device("cuda")):
            assert switches() == ["ieee"] * 3
        assert switches() == before
    finally:
        conv.fp32_precision = kept
    assert torch.backends.cudnn.allow_tf32 == (kept == "tf32")  # the older switch is what it was


def test_a_processor_needs_no_switch() -> None:
    before = switches()
    with exact(torch.device("cpu")):
        assert switches() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolutions_of_a_gpu_compute_in_float32() -> None:
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).cuda()
    maps = torch.randn(2, 64, 32, 32, device="cuda")
    with exact(maps.device):
        single, double = layer(maps), layer.double()(maps.double())
    assert ((single - double).norm() / double.norm()).item() < 1e-6
