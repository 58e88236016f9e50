"""Weights of transformers' folders: what is missing, left over or differently named is an error, or is said."""

import pytest
import torch
from safetensors.torch import save_file

from hf_folders import VIT, reconfigured, rewritten, saved
from unweave.errors import ModelError
from unweave.models import load_model
from unweave.models.hf import load
from unweave.models.library import Request

pytest.importorskip("transformers")


def notes(folder):
    return " ".join(load(Request(f"hf/{folder}", str(folder), True)).notes)


def represented(model, of):
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), of(images))


def prefixed(prefix, inner=""):
    def change(state):
        return {
            f"{prefix}{name.removeprefix(inner)}" if name.startswith(inner) else name: state[name] for name in state
        }

    return change


def test_a_prefix_of_all_names_is_taken_off_and_said(tmp_path):
    module = saved(tmp_path, "ViTModel", "ViTConfig", VIT)
    rewritten(tmp_path, lambda state: {**prefixed("backbone.")(state), "head.weight": torch.zeros(5, 32)})
    reconfigured(tmp_path, architectures=["SomebodysViT"], auto_map={"AutoModel": "somebodys.SomebodysViT"})
    represented(load_model(f"hf/{tmp_path}"), lambda images: module(images).last_hidden_state[:, 0])
    said = notes(tmp_path)
    assert "SomebodysViT; ViTModel is loaded" in said
    assert "`backbone.`" in said
    assert "head.weight" in said


def test_a_prefix_in_place_of_the_models_own_is_taken_off(tmp_path):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    rewritten(tmp_path, prefixed("encoder_of_images.", "vit."))
    model = load_model(f"hf/{tmp_path}")
    represented(model, lambda images: module.vit(images).last_hidden_state[:, 0])
    assert torch.equal(model.classifier.weight, module.classifier.weight)
    assert "`encoder_of_images.`" in notes(tmp_path)


def test_two_prefixes_that_fit_are_refused(tmp_path):
    saved(tmp_path, "ViTModel", "ViTConfig", VIT)
    rewritten(
        tmp_path,
        lambda state: {
            f"{role}.{name}": tensor.clone() for role in ("student", "teacher") for name, tensor in state.items()
        },
    )
    with pytest.raises(ModelError, match=r"student\., teacher\."):
        load_model(f"hf/{tmp_path}")


def test_a_missing_layer_is_refused(tmp_path):
    saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    rewritten(tmp_path, lambda state: {name: value for name, value in state.items() if "layer.1." not in name})
    with pytest.raises(ModelError, match="16 weights are missing from the file"):
        load_model(f"hf/{tmp_path}")


def test_a_layer_too_many_is_refused(tmp_path):
    saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    reconfigured(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"16 weights that the model of its config\.json has no place for"):
        load_model(f"hf/{tmp_path}")


def test_a_missing_bias_is_refused(tmp_path):
    saved(tmp_path, "ViTModel", "ViTConfig", VIT)
    rewritten(tmp_path, lambda state: {name: value for name, value in state.items() if name != "layernorm.bias"})
    with pytest.raises(ModelError, match=r"such as layernorm\.bias"):
        load_model(f"hf/{tmp_path}")


def test_a_missing_classifier_is_left_out_and_said(tmp_path):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    rewritten(tmp_path, lambda state: {name: value for name, value in state.items() if "classifier" not in name})
    model = load_model(f"hf/{tmp_path}")
    represented(model, lambda images: module.vit(images).last_hidden_state[:, 0])
    assert model.classifier is None
    assert "2 weights are missing" in notes(tmp_path)


def test_a_checkpoint_goes_onto_a_folders_configuration(tmp_path):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    file = tmp_path / "trained.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in module.state_dict().items()}, file)
    model = load_model(f"hf/{tmp_path}", checkpoint=file)
    torch.testing.assert_close(model.classifier.weight, module.classifier.weight + 0.01)


@pytest.mark.parametrize("prefix", ["module.", "model.student.backbone."])
def test_a_prefix_before_the_whole_model_keeps_the_classifier(tmp_path, prefix):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    rewritten(tmp_path, prefixed(prefix))
    model = load_model(f"hf/{tmp_path}")
    represented(model, lambda images: module.vit(images).last_hidden_state[:, 0])
    assert torch.equal(model.classifier.weight, module.classifier.weight)
    assert f"`{prefix}`" in notes(tmp_path)


def test_weights_of_another_shape_are_named_with_both(tmp_path):
    saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    reconfigured(tmp_path, patch_size=4)
    with pytest.raises(ModelError, match=r"position_embeddings \(\[1, 17, 32\] in the file, \[1, 65, 32\] here\)"):
        load_model(f"hf/{tmp_path}")


def test_a_classifier_of_other_classes_is_left_out_and_said(tmp_path):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    rewritten(tmp_path, lambda state: {name: own[:3] if "classifier" in name else own for name, own in state.items()})
    model = load_model(f"hf/{tmp_path}")
    represented(model, lambda images: module.vit(images).last_hidden_state[:, 0])
    assert model.classifier is None
    assert any("[3, 32] in the file, [5, 32] here" in note for note in model.notes)


def test_weights_that_the_representation_does_without_may_be_missing(tmp_path):
    options = {"image_size": [64, 64], "patch_size": [7, 7], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    options |= {"query_stride": [2, 2], "num_query_pool": 1, "masked_unit_size": [4, 4]}
    module = saved(tmp_path, "HieraModel", "HieraConfig", options)
    rewritten(tmp_path, lambda state: {name: own for name, own in state.items() if "pooler" not in name})
    with pytest.raises(ModelError, match=r"such as .*pooler\.layernorm[\s\S]+`representation`"):
        load_model(f"hf/{tmp_path}")
    model = load_model(f"hf/{tmp_path}", representation="last_hidden_state")
    represented(model, lambda images: module(images).last_hidden_state.mean(1))


def test_tokens_of_a_folder_with_a_classifier_can_be_asked_for(tmp_path):
    module = saved(tmp_path, "ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5})
    model = load_model(f"hf/{tmp_path}", pool="mean")
    represented(model, lambda images: module.vit(images).last_hidden_state[:, 1:].mean(1))
    assert model.classifier is None
    assert any("ViTForImageClassification; ViTModel is loaded" in note for note in model.notes)


def test_a_path_that_is_no_folder_is_no_model_of_the_hub(tmp_path):
    with pytest.raises(ModelError, match="There is no folder"):
        load_model(f"hf/{tmp_path / 'nothing'}")
