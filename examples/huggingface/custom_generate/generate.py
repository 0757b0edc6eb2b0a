"""ARGS as a decoding loop for ``model.generate(custom_generate=...)``."""

from args_fast.integrations.transformers import generate

__all__ = ["generate"]
