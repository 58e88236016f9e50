"""One way to disk: files that are whole or not there, tensors beside a card that carries their hash, and tables."""

from unweave.files.atomic import check_room, replacing
from unweave.files.tables import markdown, write_table

__all__ = ["check_room", "markdown", "replacing", "write_table"]
