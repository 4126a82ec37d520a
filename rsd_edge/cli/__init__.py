"""The `rsd-edge` command. Importing this package imports click and nothing heavier."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from rsd_edge import __version__
from rsd_edge.cli.streams import lasting_stderr, mend_streams, one_line, output_is_lost
from rsd_edge.errors import MissingDependencyError, RsdEdgeError
from rsd_edge.signals import INTERRUPTED, ended_as_by_ctrl_c

FAILED = 2
SLOWER = 3
"""Of `rsd-edge bench --compare`."""

_OF_GRAPHS = ("onnx", "onnx_ir")


class _Entry(NamedTuple):
    module: str
    """Its attribute `command` is the click command."""
    help: str


_COMMANDS = {
    "run": _Entry("rsd_edge.cli.run", "Upscale images, videos and folders of both."),
    "bench": _Entry("rsd_edge.cli.bench", "Measure how fast engines are here, and compare runs."),
    "eval": _Entry("rsd_edge.cli.evaluate", "Score any results, a model or an engine on a test set."),
    "build-engine": _Entry("rsd_edge.cli.build_engine", "Compile a trained model into an engine bundle."),
    "build-kernels": _Entry("rsd_edge.cli.build_kernels", "Compile the GPU kernels ahead of time."),
    "fetch": _Entry("rsd_edge.cli.fetch", "Download a published checkpoint."),
    "import-weights": _Entry("rsd_edge.cli.import_weights", "Convert published checkpoints of ResShift, SinSR or RSD."),
    "doctor": _Entry("rsd_edge.cli.doctor", "Tell what this machine has, and what can run on it."),
    "distill": _Entry("rsd_edge.cli.distill", "Train: autoencoder, teacher, student, finetune."),
}


class LazyGroup(click.Group):
    """A group whose command modules are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table, which is the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or None."""
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in _COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="rsd-edge")
@click.pass_context
def cli(context: click.Context) -> None:
    """One-step diffusion super-resolution for edge devices."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@lasting_stderr()
@ended_as_by_ctrl_c()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 2 with one line on stderr if not, 130 after Ctrl-C, and 128
    and the number of another signal that ended it."""
    mend_streams()
    words = None if arguments is None else list(arguments)
    try:
        given = sys.argv[1:] if words is None else words
        code = cli.main(words, prog_name="rsd-edge", standalone_mode=False, obj=given)
    except ImportError as error:
        if _met_ctrl_c(error):
            sys.exit(_interrupted())
        if not isinstance(error, RsdEdgeError):
            raise
        sys.exit(_fail(str(error)))
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "rsd-edge"
        sys.exit(_fail(f"{error.format_message()} (see: {where} --help)"))
    except (click.ClickException, RsdEdgeError) as error:
        sys.exit(_fail(error.format_message() if isinstance(error, click.ClickException) else str(error)))
    except OSError as error:
        if error.filename is not None:
            sys.exit(_fail(f"cannot use {error.filename}: {_cure(error)}"))
        if not output_is_lost():
            raise
        sys.exit(_fail(f"cannot write to standard output: {error.strerror}; free some space, or send it elsewhere"))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_interrupted())
    sys.exit(code if isinstance(code, int) else 0)


def missing_for_tensorrt(command: str, error: ModuleNotFoundError) -> MissingDependencyError:
    """As `missing_package`, for what needs torch with checkpoints only."""
    return missing_package(command, "graphs" if error.name in _OF_GRAPHS else "export", error)


def missing_package(command: str, extra: str, error: ModuleNotFoundError) -> MissingDependencyError:
    """What to raise when a command's own work needs a package that the core installation does not bring."""
    if (error.name or "").startswith("rsd_edge"):
        raise error  # a fault of this package, which no extra mends
    return MissingDependencyError(f"rsd-edge {command} needs '{error.name}'; run: pip install 'rsd-edge[{extra}]'")


def _cure(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "its name is too long; choose a shorter one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}; allow this user to use it, or choose another path"
    return f"{error.strerror}; check the path and the disk"


def _met_ctrl_c(error: BaseException | None) -> bool:
    """Extension modules answer a Ctrl-C that comes while they are loaded with an ImportError of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted() -> int:
    click.echo("interrupted; finished files are kept", err=True)
    return INTERRUPTED


def _fail(message: str) -> int:
    click.echo(f"error: {one_line(message)}", err=True)
    return FAILED
