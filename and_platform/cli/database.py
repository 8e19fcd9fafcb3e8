"""`andp db`: the database itself."""

from __future__ import annotations

import os
import shutil

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, show_rows
from and_platform.config import settings
from and_platform.embedded import EmbeddedServer
from and_platform.errors import AndpError


@click.group("db")
def command() -> None:
    """The database: schema, state, connection."""


@command.command()
@click.argument("revision", default="head")
@click.option("--down", is_flag=True, help="Go back to REVISION ('base' removes the schema and all data).")
@click.pass_context
def upgrade(ctx: click.Context, revision: str, down: bool) -> None:
    """Make the schema, or bring it to the newest REVISION.

    \b
    Examples:
      andp db upgrade
      andp db upgrade base --down
    """
    engine = db.make_engine(db.database_url(tell=bars(ctx).note))
    before = db.schema_revision(engine)
    if down:
        if revision == "head":
            raise click.UsageError("--down needs a revision, e.g. 'base'")
        click.confirm(f"Going back from {before} to {revision} deletes data. Go on?", abort=True)
        db.downgrade(engine, revision)
    else:
        db.upgrade(engine, revision)
    messages().print(f"schema: {before or 'none'} → {db.schema_revision(engine) or 'none'}")


@command.command()
@format_options
@click.pass_context
def status(ctx: click.Context, output_format: str) -> None:
    """Show server, versions, schema revision and size. Starts nothing."""
    config = settings()
    if config.database_url is None:
        embedded = EmbeddedServer(config.home).status()
        if embedded.pid is None:
            state = "stopped" if embedded.initialised else "not made yet"
            show_rows(
                [{"server": "embedded", "state": f"{state}; any command that needs it starts it", "data": str(embedded.data)}],
                output_format,
            )  # fmt: skip
            return
    engine = db.make_engine(db.database_url(config))
    found = db.status(engine, config.database_url is None)
    rows = [
        {
            "server": "embedded" if found.embedded else "yours",
            "url": found.url,
            "postgres": found.server_version,
            "pgvector": found.pgvector_version,
            "schema": found.schema_revision,
            "newest_schema": found.newest_revision,
            "size_mb": round(found.size_bytes / 1e6, 1),
        }
    ]
    if output_format == "table":
        show_rows([{"": key.replace("_", " "), "value": value} for key, value in rows[0].items()], "table")
    else:
        show_rows(rows, output_format)


@command.command()
@click.option("--show-password", is_flag=True, help="Print the password too.")
@click.pass_context
def url(ctx: click.Context, show_password: bool) -> None:
    """Print the URL of the database, for psql, DBeaver, pandas …; starts the embedded server.

    \b
    Example:
      psql "$(andp db url)"
    """
    found = db.database_url(tell=bars(ctx).note).set(drivername="postgresql")
    click.echo(found.render_as_string(hide_password=not show_password))


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def shell(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; ARGUMENTS go to psql.

    \b
    Examples:
      andp db shell
      andp db shell -c '\\dv+'
    """
    config = settings()
    found = db.database_url(config, bars(ctx).note).set(drivername="postgresql")
    bundled = EmbeddedServer(config.home).binaries / "psql"
    program = str(bundled) if bundled.exists() else shutil.which("psql")
    if program is None:
        raise AndpError("there is no psql on this machine; use any client with the output of: andp db url")
    environment = dict(os.environ)
    if found.password:  # not in the argument list, where every user of the machine could read it
        environment["PGPASSWORD"] = str(found.password)
    os.execve(program, [program, found._replace(password=None).render_as_string(), *arguments], environment)


@command.command()
def stop() -> None:
    """Stop the embedded server. The next command that needs it starts it again."""
    config = settings()
    if config.database_url is not None:
        raise AndpError("ANDP_DATABASE_URL is set: that server is yours to stop")
    stopped = EmbeddedServer(config.home).stop()
    messages().print("stopped" if stopped else "it was not running")
