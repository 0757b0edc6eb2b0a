"""Measures of decoded text."""

from args_fast.eval.diversity import diversity

__all__ = ["diversity"]
