"""A tiny language model and reward model that come with the package: everything works offline.

Both are Llama-architecture models of about 1.5 million parameters, trained by
``examples/tiny_pair/train.py`` on generated dialogues; ``figures.json`` next to them holds their
held-out figures, ``heldout.jsonl`` the dialogues that they were computed on. A demonstration, and a
pair to test with; not an assistant.
"""

from pathlib import Path

LM = Path(__file__).parent / "lm"
RM = Path(__file__).parent / "rm"
HELDOUT = Path(__file__).parent / "heldout.jsonl"
