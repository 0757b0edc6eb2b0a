"""The OpenAI-compatible server: ``args-fast serve``, or ``create_app`` inside a program of yours.

A request's way: logs.py (its id) → auth.py → limits.py (its body) → app.py (its route) →
chat.py or completions.py (what was asked, and the shape of the answer) → decoding.py (tokens from
the engine) → streaming.py or one JSON body. Nothing here imports torch.
"""
