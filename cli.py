"""The command line put together, and the boundary where every error becomes one line and an exit code."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from zooport import __version__
from zooport.commands import results, runs, upkeep
from zooport.commands.runtime import runtime
from zooport.commands.zoo import zoo
from zooport.export_core.failures import Failure
from zooport.jobs.exit_codes import FAILED, USAGE, exit_code

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="zooport",
    help="Export a zoo of detectron2 checkpoints, and know which exports can be trusted.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group in (runs, results, upkeep):
    app.add_typer(_group.commands)
app.add_typer(zoo, name="zoo")
app.add_typer(runtime, name="runtime")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zooport {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with 0 (fine), 1 (something failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show is no error
    # Imports make many objects and no garbage; looking for some takes a tenth of a short command's time.
    gc.set_threshold(100_000)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on standard error."""
    try:
        result = app(args=arguments, prog_name="zooport", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Failure as failure:
        _complain(f"{failure.code}: {failure.message}", failure.hint)
        return exit_code(failure)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _complain(error.format_message(), f"see {context.command_path if context else 'zooport'} --help")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # the boundary: what nobody foresaw still ends as one line
        if os.environ.get("ZOOPORT_DEBUG"):
            traceback.print_exc()
        _complain(f"{type(error).__name__}: {error}", "unforeseen; ZOOPORT_DEBUG=1 prints the stack trace")
        return FAILED


def _complain(message: str, hint: str = "") -> None:
    line = " ".join(message.split())
    with suppress(OSError):  # nobody may be there to read it
        typer.echo(f"zooport: {line}" + (f" ({hint})" if hint else ""), err=True)


if __name__ == "__main__":
    main()
