"""The shipped zoo: `pocket/NAME`; the representation is what the network classifies, or compares with texts."""

from __future__ import annotations

from unweave.errors import ModelError
from unweave.models import preprocessing
from unweave.models.checkpoint import load_checkpoint
from unweave.models.library import Request, Source, unknown
from unweave.pocket import shelf
from unweave.pocket.networks import IMAGE_SIZE, NETWORKS, image_tower


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`.

    Raises:
        ModelError: The zoo has no such network, its weights or card are damaged, or another image size is asked for.
    """
    if request.name not in NETWORKS:
        raise unknown("pocket model", request.name, NETWORKS, where=request.id)
    if request.image_size not in (None, IMAGE_SIZE):
        raise ModelError("The model takes no other image size.", where=request.id, cure="leave `image_size` out")
    module = NETWORKS[request.name](len(shelf.card(request.name)["names"]))
    if request.pretrained:
        load_checkpoint(module, shelf.weights(request.name))
    input_size = (3, IMAGE_SIZE, IMAGE_SIZE)
    return Source(module, *preprocessing.default(input_size), input_size, tower=image_tower)
