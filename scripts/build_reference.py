"""Write docs/reference/cli.md from the commands, and docs/reference/schema.md from a database made by the migrations.

python scripts/build_reference.py            # writes both
python scripts/build_reference.py --check    # writes nothing; exit status 1 where a file is stale
"""

from __future__ import annotations

import argparse
import inspect
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import sqlalchemy as sa
from pydantic import SecretStr

from and_platform import db, errors
from and_platform.cli.main import cli
from and_platform.config import Settings
from and_platform.embedded import EmbeddedServer
from and_platform.schema import Base

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
_NOTE = "<!-- Written by scripts/build_reference.py (make docs). Do not edit. -->\n"


# ---------------------------------------------------------------------- commands


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and everything below it, in alphabetical order."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, click.Context(below, info_name=name, parent=context))


def cli_page() -> str:
    """The reference of the command line."""
    everything = list(commands(cli, click.Context(cli, info_name="andp")))
    parts = [_NOTE, "# Commands\n"]
    parts.append(
        "Every command takes `-h` or `--help`. Results go to standard output, progress and messages to standard error.\n"
    )
    parts.append(
        "\n".join(f"- [`{context.command_path}`](#{_anchor(context)})" for _, context in everything[1:]) + "\n"
    )
    for command, context in everything:
        parts.append(f"{'##' if context.parent is None else '###'} {context.command_path}\n")
        parts.append(f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n")
        parts.extend(_help(command.help or ""))
        arguments = [param for param in command.params if isinstance(param, click.Argument)]
        if arguments:
            parts.append("Arguments:\n")
            parts.append("\n".join(_argument(argument, context) for argument in arguments) + "\n")
        records = [
            record for param in command.params
            if isinstance(param, click.Option) and (record := param.get_help_record(context))
        ]  # fmt: skip
        if records:
            parts.append("Options:\n")
            parts.append("\n".join(f"- `{name}`: {_plain(text)}" for name, text in records) + "\n")
    parts.append("## Exit status\n")
    parts.append("\n".join(f"- `{code}`: {text}" for code, text in _exit_statuses().items()) + "\n")
    return "\n".join(parts)


def _anchor(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _argument(argument: click.Argument, context: click.Context) -> str:
    kind = argument.type.name if argument.type is not click.UNPROCESSED else "text"
    return f"- `{argument.make_metavar(context)}`: {kind}{'' if argument.required else ', optional'}"


def _help(text: str) -> Iterator[str]:
    """Paragraphs as text; what click is told not to wrap (after a line with only \\b) as code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b"):
            yield _plain(" ".join(line.strip() for line in paragraph.splitlines())) + "\n"
            continue
        lines = paragraph.splitlines()[1:]
        if lines[0].rstrip().endswith(":") and not lines[0].startswith(" "):
            yield lines.pop(0).strip() + "\n"
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        yield "```text\n" + "\n".join(line[indent:] for line in lines) + "\n```\n"


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to format."""
    for sign in "\\*_<|`":
        text = text.replace(sign, f"\\{sign}")
    return text


def _exit_statuses() -> dict[int, str]:
    found = {0: "done"}
    kinds = [errors.AndpError]
    for kind in kinds:  # grows while it is walked: breadth first
        kinds.extend(kind.__subclasses__())
    for kind in kinds:
        name = kind.__doc__.splitlines()[0].rstrip(".") if kind.__doc__ else kind.__name__
        if "exit_code" in vars(kind) and kind is not errors.AndpError:
            found[kind.exit_code] = "; ".join(filter(None, [found.get(kind.exit_code), name]))
    found[errors.AndpError.exit_code] = "anything else that went wrong"
    found |= {130: "interrupted", 141: "whatever reads the output has closed it"}
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------- schema

_OURS = (
    "n.nspname = 'public' AND NOT EXISTS"
    " (SELECT FROM pg_depend e WHERE e.objid = o.oid AND e.classid = CAST(:catalog AS regclass) AND e.deptype = 'e')"
)
_RELATIONS = f"""
SELECT o.oid, o.relname AS name, o.relkind IN ('v', 'm') AS is_view, obj_description(o.oid, 'pg_class') AS comment
FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace
WHERE {_OURS} AND o.relkind IN ('r', 'p', 'v', 'm') AND NOT o.relispartition AND o.relname <> 'alembic_version'
ORDER BY o.relname COLLATE "C"
"""
_COLUMNS = """
SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS needed,
       col_description(attrelid, attnum) AS comment
FROM pg_attribute
WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""
_KEYS = """
SELECT pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = :oid AND contype IN ('p', 'u', 'f', 'c')
ORDER BY array_position('{p,u,f,c}', contype::text), pg_get_constraintdef(oid) COLLATE "C"
"""
_FUNCTIONS = f"""
SELECT o.proname AS name, pg_get_function_arguments(o.oid) AS arguments, pg_get_function_result(o.oid) AS result,
       obj_description(o.oid, 'pg_proc') AS comment
FROM pg_proc o JOIN pg_namespace n ON n.oid = o.pronamespace
WHERE {_OURS} AND o.prokind = 'f' AND o.prorettype <> CAST('trigger' AS regtype)
ORDER BY o.proname COLLATE "C", 2
"""


def schema_page(engine: sa.Engine) -> str:
    """The reference of tables, views and functions, as a migrated database knows them."""
    with engine.connect() as connection:
        relations = connection.execute(sa.text(_RELATIONS), {"catalog": "pg_class"}).all()
        functions = connection.execute(sa.text(_FUNCTIONS), {"catalog": "pg_proc"}).all()
        sections = {
            relation.name: _relation(connection, relation.oid, relation.name, relation.comment)
            for relation in relations
        }
    views = [relation.name for relation in relations if relation.is_view]
    parts = [_NOTE, "# Schema\n"]
    parts.append(
        "Views and functions are for whoever asks; tables are what the program writes. The same comments are in the "
        "database: `andp db shell -c '\\d+ neuron_descriptions'`.\n"
    )
    parts.append("## Views\n")
    parts.extend(sections.pop(name) for name in views)
    parts.append("## Functions\n")
    for function in functions:
        parts.append(f"### {function.name}\n")
        parts.append(f"{_plain(function.comment or '')}\n")
        given = ",\n    ".join(function.arguments.split(", "))
        parts.append(f"```sql\n{function.name}(\n    {given}\n)\nRETURNS {function.result}\n```\n")
    for module, tables in _subjects().items():
        parts.append(f"## Tables: {module}\n")
        parts.extend(sections.pop(name) for name in tables)
    assert not sections, f"tables without a class: {', '.join(sections)}"
    return "\n".join(parts)


def _relation(connection: sa.Connection, oid: int, name: str, comment: str | None) -> str:
    lines = [f"### {name}\n", f"{_plain(comment or '')}\n", "| column | type | |", "| --- | --- | --- |"]
    keys = connection.execute(sa.text(_KEYS), {"oid": oid}).scalars().all()
    for column in connection.execute(sa.text(_COLUMNS), {"oid": oid}):
        null = "" if column.needed or not keys else ", may be NULL"
        lines.append(f"| `{column.name}` | `{column.type}`{null} | {_plain(column.comment or '')} |")
    lines.append("")
    if keys:
        lines.extend(f"- `{key}`" for key in keys)
        lines.append("")
    return "\n".join(lines)


def _subjects() -> dict[str, list[str]]:
    """Tables by the module that describes them, in the order of their definition."""
    found: dict[str, list[str]] = {}
    order = {table: number for number, table in enumerate(Base.metadata.tables)}
    for mapper in sorted(Base.registry.mappers, key=lambda mapper: order[mapper.class_.__tablename__]):
        found.setdefault(mapper.class_.__module__.rpartition(".")[2], []).append(mapper.class_.__tablename__)
    return found


@contextmanager
def fresh_database() -> Iterator[sa.Engine]:
    """A database that the migrations have just made, on a server of its own."""
    home = Path(tempfile.mkdtemp(prefix="andp"))
    home.chmod(0o711)  # as root the server has a user of its own, who passes through
    try:
        engine = db.connect(Settings(home=home, database_url=None))
        yield engine
        engine.dispose()
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def given_database(url: str) -> Iterator[sa.Engine]:
    """A database that is there already, with the newest schema."""
    engine = db.connect(Settings(database_url=SecretStr(url)))
    yield engine
    engine.dispose()


def main() -> int:
    """Write or check both pages."""
    parser = argparse.ArgumentParser(description="Write docs/reference/cli.md and docs/reference/schema.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a file is stale")
    parser.add_argument("--database-url", metavar="URL", help="a migrated database; default: one made for the purpose")
    given = parser.parse_args()
    with given_database(given.database_url) if given.database_url else fresh_database() as engine:
        pages = {"cli.md": cli_page(), "schema.md": schema_page(engine)}
    stale = 0
    for name, text in pages.items():
        path = REFERENCE / name
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        if given.check:
            stale = 1
            print(f"docs/reference/{name} is stale; run: make docs", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote docs/reference/{name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
