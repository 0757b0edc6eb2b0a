"""The process that the soak asks, kills and starts again.

python server.py PORT
"""

import sys
import warnings

from models import NAME, make_decoder

from args_fast.serve import server
from args_fast.serve.app import create_app
from args_fast.serve.engine_view import EngineView
from args_fast.serve.options import ServerOptions


def main(port: int) -> None:
    """Serve at a port of loopback until a signal ends it."""
    warnings.filterwarnings("ignore", "the prompt is text")
    with server.listen("127.0.0.1", port) as listening:
        decoder = make_decoder()
        # A page takes memory once it is written to, and pages that were never used are given out
        # first. How large the caches are is an option; that they fill up is not growth.
        for cache in decoder.engine.caches:
            cache.k_pages.zero_()
            cache.v_pages.zero_()
        engine = EngineView(decoder, max_waiting=8)
        options = ServerOptions(model_names=(NAME,), max_waiting=8, max_body=2**16, limit_n=4)
        server.serve(create_app(engine, options), listening)


if __name__ == "__main__":
    main(int(sys.argv[1]))
