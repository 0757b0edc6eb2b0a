"""``python -m args_fast`` is the command line."""

from args_fast.cli import app

app()
