"""One family of errors, told apart by what the reader has to mend.

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


class ArgumentError(UnweaveError):
    """An argument cannot be used: a number out of range, a name that nothing has, options that contradict each other,
    or a package that an option needs and that is not installed.
    """


class DataError(UnweaveError):
    """Images, or what is known of them, cannot be used: a file that cannot be read, a field that is missing, too few
    images.
    """


class DataWarning(UserWarning):
    """Something to know of images that can be read: said once for each set, of the first image that it holds for."""


class ModelError(UnweaveError):
    """A model cannot be found, loaded, or read: unknown id, missing library, unreachable hub, ill-fitting
    checkpoint, no classifier, no text encoder.
    """


class NonFiniteError(ModelError):
    """A weight or an activation is NaN or infinite."""


class CaptureError(UnweaveError):
    """torch.export could not turn the module into a graph, or the module is no longer the one that was captured."""


class RuleError(CaptureError):
    """An operation on the path has no rule (only raised under `strict`), or a rule is registered twice."""


class ConservationError(UnweaveError):
    """The contributions do not add up to the representation within the tolerance."""


class StoreError(UnweaveError):
    """What unweave keeps on disk (stores, contributions, indices, edits) cannot be opened, written, or trusted: it is
    missing, damaged, of another model, or in use.
    """


class AlignmentError(UnweaveError):
    """An aligner, or a text space, does not belong to the model, or cannot be fitted, read or written."""


class DeviceError(UnweaveError):
    """There is no such device, it lacks the memory, or a process that computes has died."""
