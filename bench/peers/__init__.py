"""Other engines on the same weights, the same prompt and the same machine: `make bench-peers`.

Each runs in an environment of its own, as a process that decodes when it is asked to (worker.py).
``compare.py`` makes the environments and the weights, asks all of them in turn, round by round, and
prints one table. Adding a peer: a module with ``load(model, dtype, threads, room)``, an entry in
``environments.ENVIRONMENTS``, and a line in ``compare.load``.
"""
