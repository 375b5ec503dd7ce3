"""`tokenmill gateway`: reads options, puts the settings together, serves. Knows no HTTP."""

import ipaddress
from importlib import import_module
from pathlib import Path

import click

from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import queue_options

OPEN_DOOR = (
    "tokenmill gateway: WARNING: ANYBODY WHO REACHES {host} MAY USE THIS MODEL, for it asks for no API keys: "
    "--require-keys with `tokenmill keys create`, or --host 127.0.0.1"
)


@click.command(
    help=with_exit_codes(
        """Serve OpenAI's HTTP interface in front of a queue, until SIGTERM.

        \b
        tokenmill gateway --redis redis://localhost:6379/0 --port 8000
        curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
             -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'

        Start as many as you like: they keep nothing that another one would miss.
        """,
        "0 ended by SIGTERM, 2 wrong usage",
    )
)
@queue_options
@click.option("--host", envvar="TOKENMILL_GATEWAY_HOST", default="127.0.0.1", show_default=True, show_envvar=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    envvar="TOKENMILL_GATEWAY_PORT",
    default=8000,
    show_default=True,
    show_envvar=True,
)
@click.option(
    "--files",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    envvar="TOKENMILL_FILES",
    show_envvar=True,
    help="Files and batches, shared with `tokenmill bulk worker`.",
)
@click.option(
    "--rq-redis",
    "rq_url",
    metavar="URL",
    envvar="TOKENMILL_RQ_REDIS_URL",
    show_envvar=True,
    help="Where batches are queued, when --redis is a cluster. Any but a cluster; default: --redis.",
)
@click.option(
    "--require-keys",
    "requires_keys",
    is_flag=True,
    envvar="TOKENMILL_REQUIRE_KEYS",
    show_envvar=True,
    help="Let nobody in without an API key (`tokenmill keys create`).",
)
@click.option(
    "--max-file-mb",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    metavar="N",
    envvar="TOKENMILL_MAX_FILE_MB",
    show_envvar=True,
    help="The largest upload; OpenAI's limit by default.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    envvar="TOKENMILL_CORS_ORIGINS",
    show_envvar=True,
    help="Let pages of this origin ask from a browser; may be repeated. None by default.",
)
@click.option(
    "--tracing/--no-tracing",
    envvar="TOKENMILL_TRACING",
    show_envvar=True,
    help="Send OpenTelemetry spans where OTEL_EXPORTER_OTLP_ENDPOINT says; off by default.",
)
@click.option(
    "--allow-admin",
    is_flag=True,
    envvar="TOKENMILL_ALLOW_ADMIN",
    show_envvar=True,
    help="Let the page at / redrive dead letters. Without it, it only shows.",
)
def gateway(
    redis_url: str,
    queue: str,
    partitions: int,
    host: str,
    port: int,
    files: Path | None,
    rq_url: str | None,
    requires_keys: bool,
    max_file_mb: int,
    cors_origins: tuple[str, ...],
    tracing: bool,
    allow_admin: bool,
) -> None:
    try:
        from tokenmill.gateway.serve import serve
        from tokenmill.gateway.settings import GatewaySettings

        if tracing:
            import_module("tokenmill.gateway.tracing")
    except ModuleNotFoundError as error:
        extras = "gateway,tracing" if tracing else "gateway"
        fail(f"the gateway needs {error.name}: pip install 'tokenmill[{extras}]'", Exit.USAGE)
    settings = GatewaySettings(
        redis_url=redis_url,
        queue=queue,
        partitions=partitions,
        host=host,
        port=port,
        files=files,
        rq_url=rq_url,
        requires_keys=requires_keys,
        max_file_bytes=max_file_mb << 20,
        cors_origins=cors_origins,
        tracing=tracing,
        allow_admin=allow_admin,
    )
    click.echo(f"tokenmill gateway: http://{host}:{port}/v1, queue {queue}", err=True)
    if not requires_keys and not is_loopback(host):
        click.secho(OPEN_DOOR.format(host=host), err=True, fg="red", bold=True)
    serve(settings)


def is_loopback(host: str) -> bool:
    """Of a name that is no address, only `localhost` is taken for one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
