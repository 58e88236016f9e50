"""From images to a store, resumable, on one machine or many."""

from unweave.extraction.account import Estimate, Extracted
from unweave.extraction.contributions import decompose
from unweave.extraction.job import Extraction, estimate, extract, prepare
from unweave.extraction.pictures import pictures, whole_pictures
from unweave.extraction.settings import Launcher, Part, Settings
from unweave.extraction.verification import Verification, verify

__all__ = [
    "Estimate",
    "Extracted",
    "Extraction",
    "Launcher",
    "Part",
    "Settings",
    "Verification",
    "decompose",
    "estimate",
    "extract",
    "pictures",
    "prepare",
    "verify",
    "whole_pictures",
]
