"""The ``wardian`` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from wardian.cli import (
    agent,
    budget,
    effects,
    egress,
    grant,
    inside,
    key,
    network,
    runner,
    sandbox,
    secret,
    server_file,
    snapshot,
    template,
    volume,
    workflow,
)
from wardian.cli import run as runs
from wardian.cli.environment import concealed
from wardian.cli.output import EXIT_CODES, ExitCode, Json, errors

app = typer.Typer(
    name="wardian",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A home for AI agents: sealed, pausable, forkable sandboxes with a kernel of their own.",
    epilog=EXIT_CODES,
)

Url = Annotated[
    str | None,
    typer.Option("--url", help="The server (WARDIAN_API_URL, E2B_API_URL; default: the local one)."),
]
Key = Annotated[str | None, typer.Option("--api-key", help="The API key (WARDIAN_API_KEY, E2B_API_KEY).")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Talk to the local server that runs on this data directory.")
]


def server_options(context: typer.Context, url: Url = None, key: Key = None, data: Data = None) -> None:
    context.obj = (url, key, data)


def version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(f"wardian {installed('wardian')}")
        raise typer.Exit


@app.callback()
def top(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_CODES)
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for any free one (default: 9273).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Where everything is kept (WARDIAN_DATA; default: /var/lib/wardian)."),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Serve sandbox.example.com and the names below it over HTTPS; with :port, if clients see "
            "another one than --tls-port."
        ),
    ] = None,
    tls: Annotated[
        bool | None, typer.Option("--tls/--no-tls", help="--no-tls: somebody in front of us does the HTTPS.")
    ] = None,
    tls_port: Annotated[int | None, typer.Option(help="Port for HTTPS (default: 8443).")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain for the domain (PEM); default: one of our own.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    proxy_port: Annotated[
        int | None, typer.Option(help="Port for a proxy to the domain, for clients without DNS for it.")
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(help="Kernel that microVMs boot (vmlinux or bzImage); default: Debian's.")
    ] = None,
    kernel_arguments: Annotated[
        str | None, typer.Option(help="Words for that kernel's command line.")
    ] = None,
    snapshots_compress_after_s: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            help="Compress snapshots on disk that nobody used for so long (default: 0, never).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the server, in the foreground, until Ctrl-C.

    Prints the URL, an API key, and the variables that point the E2B SDK here. Listens on loopback unless
    told otherwise. Sandboxes outlive it: the next server on the same data directory takes them over, running
    ones too. Every option may also come from the environment, as `WARDIAN_HOST` and so on.
    """
    environment = concealed()  # before anything else: it may begin this command anew
    from wardian.cli import serve as server  # late: it brings half of the house, and other commands want none
    from wardian.config import Settings

    with errors(as_json=as_json):
        settings = Settings.load(
            environment,
            data_dir=data or server_file.default_data_dir(),
            host=host,
            port=port,
            domain=domain,
            tls=tls,
            tls_port=tls_port,
            tls_cert=tls_cert,
            tls_key=tls_key,
            proxy_port=proxy_port,
            kernel=kernel,
            kernel_arguments=kernel_arguments,
            snapshots_compress_after_s=snapshots_compress_after_s,
        )
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        server.serve(settings, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def ca(
    *,
    domain: Annotated[
        str | None, typer.Option(help="The domain (WARDIAN_DOMAIN; default: the newest served).")
    ] = None,
    data: Data = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="With the public authorities, for SSL_CERT_FILE.")
    ] = False,
) -> None:
    """Print the certificate that clients of our domain must trust, and how to make them.

    Every data directory has an authority of its own for each domain. It is made when it is first needed.
    """
    from wardian.cli.ca import show

    with errors():
        show(
            data or server_file.default_data_dir(), domain or os.environ.get("WARDIAN_DOMAIN"), bundle=bundle
        )


@app.command(epilog=EXIT_CODES)
def doctor(*, as_json: Json = False) -> None:
    """Check whether this host can run sandboxes; ends with 1 if it cannot.

    Really boots a machine and talks to it. Nothing is changed and nothing is left behind.
    """
    from wardian.cli.doctor import examination

    raise typer.Exit(ExitCode.DONE if examination(as_json=as_json) else ExitCode.FAILED)


sandbox.app.command("exec", epilog=EXIT_CODES, context_settings=inside.WITH_OPTIONS)(inside.exec_)
for inner in (inside.shell, inside.cp, network.network):
    sandbox.app.command(epilog=EXIT_CODES)(inner)
groups = (sandbox.app, snapshot.app, egress.app, template.app, secret.app)
families = (agent.app, runs.app, workflow.app, runner.app)
for group in (*groups, grant.app, effects.app, budget.app, volume.app, *families):
    group.callback()(server_options)

app.add_typer(sandbox.app, name="sandbox")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(egress.app, name="egress")
app.add_typer(template.app, name="template")
app.add_typer(agent.app, name="agent")
app.add_typer(runs.app, name="run")
app.add_typer(workflow.app, name="workflow")
app.add_typer(runner.app, name="runner")
app.add_typer(secret.app, name="secret")
app.add_typer(grant.app, name="grant")
app.add_typer(effects.app, name="effects")
app.add_typer(budget.app, name="budget")
app.add_typer(volume.app, name="volume")
app.add_typer(key.app, name="key")


if __name__ == "__main__":
    app()
