"""Measures of decoded text, and the experiments of the paper (``args-fast eval``)."""

from args_fast.eval.diversity import diversity, published_diversity

__all__ = ["diversity", "published_diversity"]
