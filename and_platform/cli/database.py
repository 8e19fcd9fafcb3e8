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
from and_platform.services import roles as role_script
from and_platform.services import storage


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
    found = db.database_url(tell=bars(ctx).note)
    shown = (
        found.set(drivername="postgresql").render_as_string(hide_password=False) if show_password else db.shown(found)
    )
    click.echo(shown)


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
    if secret := db.secret_options(found):
        raise AndpError(
            f"'{secret[0]}' in ANDP_DATABASE_URL would be in the arguments of psql, which all users of this machine can read; "
            "put it into ~/.pg_service.conf and run psql yourself"
        )
    program = str(bundled) if bundled.exists() else shutil.which("psql")
    if program is None:
        raise AndpError("there is no psql on this machine; use any client with the output of: andp db url")
    environment = dict(os.environ)
    if found.password:  # not in the argument list, where every user of the machine could read it
        environment["PGPASSWORD"] = str(found.password)
    os.execve(program, [program, found._replace(password=None).render_as_string(), *arguments], environment)


@command.command()
@click.option("--apply", "run", is_flag=True, help="Run it, as the database's owner with CREATEROLE or as a superuser.")
@click.pass_context
def roles(ctx: click.Context, run: bool) -> None:
    """Print the SQL of the roles andp_owner, andp_worker and andp_reader, or run it with --apply.

    Each has no more rights than it needs. The script may be run again at any time, and tells how users get a role.

    \b
    Examples:
      andp db roles --apply
      andp db roles | psql -U postgres andp
    """
    if not run:
        click.echo(role_script.script(), nl=False)
        return
    role_script.apply(db.connect(tell=bars(ctx).note))
    messages().print(f"roles: {', '.join(role_script.ROLES)}. How users get one: andp db roles", markup=False)


@command.command()
@click.option("--tables", "by_table", is_flag=True, help="By table instead of by recording and subject.")
@format_options
@click.pass_context
def size(ctx: click.Context, by_table: bool, output_format: str) -> None:
    """Show what takes how much on disk: tables, values out of line (TOAST), indexes, and rows that are dead.

    \b
    Examples:
      andp db size
      andp db size --tables --json
    """
    show_rows(storage.sizes(db.connect(tell=bars(ctx).note), by_table=by_table), output_format)


@command.command()
@click.argument("recording", type=int, required=False)
@format_options
@click.pass_context
def vacuum(ctx: click.Context, recording: int | None, output_format: str) -> None:
    """Give back what nobody needs, of the whole database or of one RECORDING; others go on meanwhile.

    Drops what a killed drop left, deletes landed blocks that are folded, workers not heard of for a week and failures
    that tell of messages refused before that, then vacuums and analyses the tables.

    \b
    Examples:
      andp db vacuum
      andp db vacuum 3
    """
    show_rows(storage.vacuum(db.connect(tell=bars(ctx).note), recording, progress=bars(ctx)), output_format)


@command.command()
@format_options
@click.pass_context
def index(ctx: click.Context, output_format: str) -> None:
    """Build the vector indexes (HNSW) that are missing, or that a killed build left; others go on meanwhile.

    A dissection builds them too, if its user owns the tables. Without them a search by meaning gives the same, by a scan.
    """
    show_rows(
        storage.build_indexes(db.connect(tell=bars(ctx).note), progress=bars(ctx)), output_format,
        empty="no summaries to index yet; run: andp dissect NETWORK",
    )  # fmt: skip


@command.command()
def stop() -> None:
    """Stop the embedded server. The next command that needs it starts it again."""
    config = settings()
    if config.database_url is not None:
        raise AndpError("ANDP_DATABASE_URL is set: that server is yours to stop")
    stopped = EmbeddedServer(config.home).stop()
    messages().print("stopped" if stopped else "it was not running")
