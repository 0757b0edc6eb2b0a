"""Triton decides when it is imported whether kernels run in its interpreter. So the tests that need
the interpreter lie in interpreted/, are not collected with the others, and are run by
test_interpreted.py, each module in a process of its own."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
