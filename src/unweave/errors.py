"""One family of errors.

Every error that unweave raises on purpose is an `UnweaveError`. Its message says what happened, where (component,
module, source line or file), and what to do about it; the command line prints exactly that and leaves with status 2.
"""

from __future__ import annotations


class UnweaveError(Exception):
    """Something the reader can act on.

    Args:
        what: What happened, in one sentence.
        where: The component, module, source line or file it happened at, where there is one.
        cure: What to do, in the imperative.
    """

    def __init__(self, what: str, *, where: str | None = None, cure: str | None = None) -> None:
        self.what, self.where, self.cure = what, where, cure
        parts = [what, f"  at: {where}" if where else "", f"  try: {cure}" if cure else ""]
        super().__init__("\n".join(part for part in parts if part))


class ModelError(UnweaveError):
    """A model cannot be found, loaded, or read: unknown id, missing library, unreachable hub, ill-fitting
    checkpoint.
    """


class CaptureError(UnweaveError):
    """torch.export could not turn the module into a graph."""


class RuleError(UnweaveError):
    """An operation on the path has no rule (only raised under `strict`), or a rule is registered twice."""


class SelectionError(UnweaveError):
    """A component selection matches nothing, or is not a selection."""


class ImageError(UnweaveError):
    """An image file, or a folder of them, cannot be read."""


class StoreError(UnweaveError):
    """A store cannot be opened, written, or trusted: it is missing, damaged, of another model, or in use."""


class TextError(UnweaveError):
    """A text, a template or a feature cannot be used, or a model has no text encoder."""


class ConservationError(UnweaveError):
    """The contributions do not add up to the representation within the tolerance."""


class NonFiniteError(UnweaveError):
    """A weight or an activation is NaN or infinite."""
