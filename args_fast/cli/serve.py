"""``args-fast serve``: the pair of models under OpenAI's API."""

from pathlib import Path
from typing import TYPE_CHECKING

from args_fast.cli import options, serve_options
from args_fast.cli.console import errors_in_a_line, fail, note
from args_fast.cli.models import Models, with_models
from args_fast.cli.pair import find_pair, load_pair

if TYPE_CHECKING:
    from args_fast.serve.options import ServerOptions

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLES = """
[bold]Examples[/]

[dim]# the embedded pair, with a page to try it at http://127.0.0.1:8000[/]

args-fast serve

[dim]# your own models, for others, with a key[/]

ARGS_FAST_API_KEYS=secret args-fast serve --lm org/lm --rm org/rm --host 0.0.0.0

[dim]# ask it[/]

curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
-d '{"prompt": "How do I teach my spaniel to sit?", "args": {"k": 10, "w": 1.5}}'
"""


@with_models
def serve(
    k: options.K = 10,
    w: options.W = 1.5,
    host: serve_options.Host = "127.0.0.1",
    port: serve_options.Port = 8000,
    served_model_name: serve_options.ServedModelName = None,
    api_key: serve_options.ApiKey = None,
    api_key_file: serve_options.ApiKeyFile = None,
    max_model_len: serve_options.MaxModelLen = None,
    max_waiting: serve_options.MaxWaiting = 256,
    max_body: serve_options.MaxBody = 4 * 2**20,
    limit_n: serve_options.LimitN = 16,
    drain_seconds: serve_options.DrainSeconds = 30.0,
    log_prompts: serve_options.LogPrompts = False,
    ray: serve_options.Ray = False,
    replicas: serve_options.Replicas = "1",
    cpus: serve_options.Cpus = 1.0,
    *,
    models: Models,
) -> None:
    """Serve the models under OpenAI's API, with metrics and a page to try them.

    Clients of OpenAI work as they are; guided decoding's options travel in the field args.
    """
    with errors_in_a_line():
        _check_installed()
        from args_fast.config import DecodingConfig
        from args_fast.serve.auth import read_keys
        from args_fast.serve.options import ServerOptions

        keys = read_keys(api_key or [], api_key_file)
        server_options = ServerOptions(
            model_names=tuple(served_model_name or [_name(models.lm)]),
            api_keys=keys,
            max_model_len=max_model_len,
            max_waiting=max_waiting,
            max_body=max_body,
            limit_n=limit_n,
            drain_seconds=drain_seconds,
            log_prompts=log_prompts,
            defaults=DecodingConfig(k=k, w=w),
            demonstration=models.lm is None and models.rm is None,
        )
        if not keys and host not in LOOPBACK:
            note(f"listening at {host} without API keys: anyone who reaches this port can decode")
        if ray:
            _serve_on_ray(models, server_options, host, port, replicas, cpus)
        else:
            _serve(models, server_options, host, port)


def _serve_on_ray(
    models: Models,
    server_options: "ServerOptions",
    host: str,
    port: int,
    replicas: str,
    cpus: float,
) -> None:
    from args_fast.serve import ray_app

    pair = ray_app.ServedPair(**find_pair(models.lm, models.rm), options=models.options)
    scale = ray_app.Scale.parse(replicas, cpus, ray_app.start(models.options["device"]))
    note(f"deploying on Ray Serve; then at http://{host}:{port}/v1")
    ray_app.run(pair, server_options, scale, host=host, port=port)


def _serve(models: Models, server_options: "ServerOptions", host: str, port: int) -> None:
    from args_fast.serve import server
    from args_fast.serve.app import create_app
    from args_fast.serve.engine_view import EngineView

    with server.listen(host, port) as listening:  # taken before minutes of loading
        decoder, _ = load_pair(models)
        engine = EngineView(
            decoder,
            max_waiting=server_options.max_waiting,
            max_model_len=server_options.max_model_len,
        )
        url = server.address(listening)
        note(f"serving {server_options.model_names[0]} at {url}/v1 · a page to try it: {url}/")
        server.serve(create_app(engine, server_options), listening)


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        fail(f"args-fast serve needs {error.name}; install it with: pip install 'args-fast[serve]'")


def _name(lm: str | None) -> str:
    """A model's name without the folders that it lies in."""
    if lm is None:
        return "args-fast-tiny"
    path = Path(lm).expanduser()
    return path.resolve().name if path.is_dir() else lm
