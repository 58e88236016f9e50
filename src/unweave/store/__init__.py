"""Contributions on disk: a directory of standard files, in which every row knows its image.

manifest.json               what the store holds, of which model, made how
components-head.parquet     the components of a level, in the order of the array
listings/0000.parquet       the images that were to be extracted: ids and fields
records/00000000.parquet    a block that is done: row, error, or the reason why an image was left out
index.parquet               all of these, put together at the end
contributions/head/         a safetensors file for each block, `values` [component, row, dim]
representation/, logits/    the same, [row, dim] and [row, class]
"""

from unweave.store.export import export
from unweave.store.manifest import Manifest
from unweave.store.place import Place
from unweave.store.reader import Readable, Store, open_store, view_of

__all__ = ["Manifest", "Place", "Readable", "Store", "export", "open_store", "view_of"]
