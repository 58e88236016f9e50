"""Vision models of transformers: `hf/ORG/NAME` on the hub, or `hf/FOLDER` as `save_pretrained` writes it.

`architectures.py` says what is built of what a configuration names, `weights.py` what a file must hold, `inputs.py`
what a model takes of a picture, `towers.py` how it is called, and `mapping.py` how what takes one image takes many.
"""

from unweave.models.hf.loading import is_folder, load, reading

__all__ = ["is_folder", "load", "reading"]
