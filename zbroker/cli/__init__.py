"""The command `zbroker`: one file a command family, loaded when it is called.

Data goes to standard output, talk to standard error. Every error is one line, `error CODE: text`,
and an exit code of the error table; ZBROKER_DEBUG=1 shows where it came from. `--help` must not
wait for libraries that only the commands need, so click is the only one that this file imports.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import traceback
from typing import Any

import click

from zbroker.cli.output import silence
from zbroker.errors import InvalidArgument, ZBrokerError, make
from zbroker.version import __version__

INTERRUPTED = 130
_COMMANDS = {
    "up": ("up", "Start a broker: NameServer, gateway and workers."),
    "down": ("up", "Stop the broker of a data folder."),
    "status": ("up", "Show processes and shards of a data folder."),
    "serve": ("serve", "Run a single process, for service managers."),
    "pub": ("pub", "Publish messages."),
    "tail": ("tail", "Print messages as they come."),
    "consume": ("consume", "Print messages as a member of a group."),
    "topic": ("topic", "Topics: list, create, show, update, delete, stats."),
    "group": ("group", "Consumer groups: list, show, lag, members, reset, delete."),
    "dlq": ("dlq", "Dead letters: list, show, resend, export, purge."),
    "msg": ("msg", "Single messages."),
    "bench": ("bench", "Measure."),
    "store": ("store", "Check and dump the files of a shard, offline."),
    "config": ("config", "Show and check the configuration."),
    "errors": ("errors", "What error codes mean."),
    "completion": ("completion", "Print the completion script for a shell."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"zbroker.cli.{_COMMANDS[cmd_name][0]}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see __main__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="zbroker %(version)s")
def zbroker() -> None:
    """A durable message broker: no JVM, any language with ZeroMQ is a client.

    \b
    zbroker up -d                      start a broker
    zbroker pub hello "a message"      publish
    zbroker tail hello --from begin    read
    """


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None: of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 partly, 4 not found, 5 unreachable or timed
        out, 6 refused, 7 conflict, 130 interrupted.
    """
    _mend_streams()
    try:
        answer: Any = zbroker.main(arguments, prog_name="zbroker", standalone_mode=False)
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # click exits for a broken pipe, only then
        silence()
        return 0
    except Exception as error:
        if os.environ.get("ZBROKER_DEBUG") == "1":
            traceback.print_exc()
        return _complain(_as_ours(error))
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            silence()  # it was told, or nobody reads it


def _mend_streams() -> None:
    """A stream that was closed (`>&-`) is an empty one, and what one cannot spell is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _as_ours(error: Exception) -> ZBrokerError:
    if isinstance(error, ZBrokerError):
        return error
    if isinstance(error, click.ClickException):
        return InvalidArgument(" ".join(error.format_message().split()))
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        denied = "DENIED" if isinstance(error, PermissionError) else "INVALID_ARGUMENT"
        code = "DISK_FULL" if error.errno == errno.ENOSPC else denied
        return make(code, f"{name}{error.strerror or error}")
    if isinstance(error, UnicodeEncodeError):
        return InvalidArgument(f"{error.object!a:.80}: not UTF-8")
    kind = type(error).__name__
    return make("INTERNAL", f"{kind}: {error} (ZBROKER_DEBUG=1 shows where; please report it)")


def _complain(error: ZBrokerError) -> int:
    text = " ".join(str(error).split())
    with contextlib.suppress(OSError):
        print(f"error {error.code}: {text}", file=sys.stderr)
    return error.exit_code
