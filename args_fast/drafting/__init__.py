"""What the next tokens of a text may be: guesses that the engine verifies, and never relies on."""

from args_fast.drafting.base import Drafter, Drafts
from args_fast.drafting.history import AutoDrafts, History
from args_fast.drafting.loading import KINDS, load_drafts
from args_fast.drafting.ngram import NGrams
from args_fast.drafting.small_lm import SmallLM

__all__ = [
    "KINDS",
    "AutoDrafts",
    "Drafter",
    "Drafts",
    "History",
    "NGrams",
    "SmallLM",
    "load_drafts",
]
