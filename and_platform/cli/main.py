"""The command `andp`. Each group of commands lives in a module of its own, imported when it is used."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from and_platform import logs
from and_platform.cli.search_path import close_search_path
from and_platform.config import name_env_file, settings
from and_platform.errors import AndpError, InputError
from and_platform.escaping import for_terminal

# name -> module; the module's attribute `command` is the click command or group.
COMMANDS = {
    "broker": "broker",
    "concepts": "concepts",
    "datasets": "datasets",
    "db": "database",
    "demo": "demo",
    "dissect": "dissect",
    "dissections": "dissections",
    "doctor": "doctor",
    "eval": "evaluate",
    "failures": "failures",
    "features": "features",
    "ingest": "ingest",
    "interpretability": "interpretability",
    "networks": "networks",
    "neuron": "neuron",
    "neurons": "neurons",
    "profiles": "profiles",
    "recordings": "recordings",
    "report": "report",
    "runs": "runs",
    "search": "search",
    "sql": "sql",
    "study": "study",
    "unlearn": "unlearn",
    "worker": "worker",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that `andp --help` starts at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"and_platform.cli.{COMMANDS[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="and-platform", prog_name="andp")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; results and errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, to standard error.")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from the lines of FILE. Default: ANDP_ENV_FILE; a file .env is read only where it is named.",
)
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool, env_file: Path | None) -> None:
    """Find out what the neurons of an audio network do.

    \b
    A first look:          andp demo
    Your own sounds:       andp ingest folder SOUNDS
    Your own network:      andp networks add NAME DIRECTORY
    Dissect it:            andp dissect NAME --dataset SOUNDS
    Ask:                   andp neurons --concept water
                           andp sql "SELECT * FROM current_neuron_descriptions LIMIT 5"

    The database is an embedded Postgres under ANDP_HOME, or the server in ANDP_DATABASE_URL.
    """
    ctx.obj = {"quiet": quiet}
    if env_file is not None:
        name_env_file(env_file)
    logs.configure("INFO" if verbose else settings().log_level, settings().log_format)
    if not verbose:  # its tries to reach the hub; what came of them is in our own message
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Libraries' own bars and advice would break ours; their errors still come through.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main() -> None:
    """Run `andp`; every foreseen error is one line on stderr and an exit status that tells its kind."""
    close_search_path()
    try:
        _check_arguments(sys.argv[1:])
        cli.main(prog_name="andp", standalone_mode=False)
    except AndpError as exc:
        click.echo(f"andp: {for_terminal(logs.mask(str(exc)))}", err=True)
        sys.exit(exc.exit_code)
    except click.exceptions.Abort as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):
            click.echo("andp: interrupted; run the same command again to go on", err=True)
            sys.exit(130)
        click.echo("andp: not confirmed; nothing was done", err=True)
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        click.echo(f"andp: {for_terminal(logs.mask(_one_line(exc)), keep='')}", err=True)
        sys.exit(exc.exit_code)
    except UnicodeEncodeError as exc:  # a name of a file or a variable; the arguments were checked
        if exc.encoding == "utf-8":
            click.echo(f"andp: {_not_utf8(exc.object)} is not UTF-8, and cannot be stored; rename it", err=True)
        else:
            click.echo(f"andp: the output cannot be written as {exc.encoding}; set PYTHONUTF8=1", err=True)
        sys.exit(InputError.exit_code)
    except MemoryError:
        click.echo("andp: memory ran out; close other programs, or give it less at a time, and run it again", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `andp … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _check_arguments(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8: the database takes no other text.

    Raises
    ------
    InputError
        An argument holds bytes that are not UTF-8; Python keeps them as lone surrogates.
    """
    for argument in arguments:
        if not _is_text(argument):
            raise InputError(f"the argument {_not_utf8(argument)} is not UTF-8; rename the file, or type it in UTF-8")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(text: str) -> str:
    """A text that is not UTF-8, for a message: its bytes or its surrogates escaped, cut after 200 characters."""
    return ascii(text[:200])


def _one_line(exc: click.ClickException) -> str:
    """What is wrong with the command line, and where its help is."""
    told = " ".join(exc.format_message().split()).rstrip(".")
    ctx = getattr(exc, "ctx", None)
    return told if ctx is None else f"{told}; see: {ctx.command_path} --help"


def bars(ctx: click.Context) -> Any:
    """The progress listener of this invocation."""
    from and_platform.cli.output import Bars

    return Bars(quiet=bool((ctx.obj or {}).get("quiet")))


if __name__ == "__main__":
    main()
