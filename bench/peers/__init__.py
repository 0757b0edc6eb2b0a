"""Other engines on the same weights, the same prompt and the same machine: `make bench-peers`.

Each runs in an environment of its own, made of a file of requirements, as a process that decodes
when it is asked to (worker.py). ``compare.py`` asks all of them in turn, round by round, and prints
one table. Adding a peer: NAME.py with ``load(model, dtype, threads, room)``, NAME.txt, and a line
in ``compare.PEERS``.
"""
