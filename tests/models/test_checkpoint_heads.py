"""Checkpoints as trainers write them: heads put in the classifier's place, decoders, chunks, and settings beside."""

import collections
import datetime

import pytest
import timm
import torch
import torchvision
from torch import nn

from unweave.errors import ModelError
from unweave.models import load_model
from unweave.models.checkpoint import load_checkpoint
from unweave.models.weights import randomise

ID = "timm/test_vit"


@pytest.fixture(scope="module")
def state():
    return randomise(timm.create_model("test_vit"), 4).eval().state_dict()


def loaded(content, tmp_path, id=ID):
    torch.save(content, tmp_path / "weights.pt")
    return load_model(id, checkpoint=tmp_path / "weights.pt")


def holds(model, state):
    own = model.readout.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own if not name.startswith("head"))


@pytest.mark.parametrize("place", ["fc.1", "fc.0", "fc.linear"])
def test_a_linear_layer_in_the_classifiers_place_is_the_classifier(tmp_path, place):
    network = randomise(torchvision.models.resnet18(), 2).eval()
    network.fc = nn.Sequential(collections.OrderedDict({place.partition(".")[2]: nn.Linear(512, 5)}))
    model = loaded(network.state_dict(), tmp_path, "torchvision/resnet18")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.readout(images)), network(images))
    assert any(f"the linear layer `{place}`" in note for note in model.notes)


@pytest.mark.parametrize("head", [nn.Linear(192, 7), nn.Sequential(nn.Dropout(), nn.Linear(192, 7))])
def test_a_head_in_the_place_of_the_part_that_held_it(tmp_path, head):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 192)
            self.heads = nn.Sequential(collections.OrderedDict(head=nn.Linear(192, 1000)))

    trained, network = Network(), Network()
    trained.heads = head
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    needed = frozenset({"layer.weight", "layer.bias"})
    load_checkpoint(network, tmp_path / "weights.pt", needed=lambda: needed)
    trained.eval(), network.eval()
    values = torch.randn(2, 192)
    torch.testing.assert_close(network.heads(values), trained.heads(values))


def test_a_head_of_several_layers_is_left_out(tmp_path):
    network = torchvision.models.resnet18()
    network.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5))
    model = loaded(network.state_dict(), tmp_path, "torchvision/resnet18")
    assert model.classifier is None and any("fc (4 tensors)" in note for note in model.notes)


def test_a_head_does_not_decide_which_of_two_is_taken(tmp_path, state):
    plain = {f"encoder_q.{name}": value for name, value in state.items() if not name.startswith("head")}
    average = {f"encoder_k.{name}": value + 1 for name, value in state.items()}
    model = loaded({**average, **plain}, tmp_path)
    holds(model, state)
    assert any("to be named by `checkpoint_key`: `encoder_k`" in note for note in model.notes)


def test_a_decoder_with_positions_of_its_own_is_left_out(tmp_path, state):
    decoder = {"decoder_pos_embed": torch.ones(1, 5, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    model = loaded({**state, **decoder, "mask_token": torch.ones(1, 1, 8)}, tmp_path)
    holds(model, state)
    assert any("decoder_pos_embed" in note for note in model.notes)
    with pytest.raises(ModelError, match="reg_token"):
        loaded({**state, **decoder, "reg_token": torch.ones(1, 4, 64)}, tmp_path)


def test_what_a_profiler_counts_is_no_weight(tmp_path, state):
    counts = {f"{part}{name}": torch.zeros(1) for part in ("", "blocks.0.") for name in ("total_ops", "total_params")}
    holds(loaded({**state, **counts}, tmp_path), state)


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_blocks_in_chunks_are_those_of_one_list(tmp_path, state, prefix):
    chunked = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        chunk = f"blocks.{int(number) // 3}.{rest}" if first == "blocks" else name
        chunked[f"{prefix}{chunk}"] = value
    model = loaded(chunked, tmp_path)
    holds(model, state)
    assert any("chunks" in note for note in model.notes)


def test_lists_in_lists_are_no_chunks(tmp_path):
    network = randomise(timm.create_model("test_efficientnet"), 1)
    model = loaded(
        {f"model.{name}": value for name, value in network.state_dict().items()}, tmp_path, "timm/test_efficientnet"
    )
    assert not any("chunks" in note for note in model.notes)


def test_plain_records_of_python_beside_the_weights_are_read(tmp_path, state):
    beside = {
        "when": datetime.datetime(2026, 1, 1),
        "took": datetime.timedelta(seconds=3),
        "counts": collections.Counter(a=1),
        "history": collections.defaultdict(list, {"loss": [0.1]}),
        "range": slice(1, 2),
        "kind": float,
    }
    holds(loaded({"state_dict": state, **beside}, tmp_path), state)
