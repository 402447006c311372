# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskctl: the verbs and manners of systemctl, for background tasks. See bgtaskctl(1)."""

from __future__ import annotations

import io
import os
import sys

import bgtaskd
from bgtaskd import errors
from bgtaskd.cli.common import Problem
from bgtaskd.cli.options import parser
from bgtaskd.cli.render import escaped

DONE, FAILED, NOT_REACHABLE, NO_SUCH_TASK, NOT_ALLOWED = 0, 1, 3, 4, 5


def main(argv: list[str] | None = None) -> int:
    """Entry point. The exit status is described in bgtaskctl(1)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale that has no "●" is no reason to fail
    top = parser()
    words, command = _split(sys.argv[1:] if argv is None else argv)
    arguments = top.parse_args(words)
    if command is not None:
        arguments.command = command
    if getattr(arguments, "group_of", "") is None and not arguments.ids:
        top.error("which tasks? Their ids, or --group NAME")
    try:
        status = int(arguments.verb(arguments) or DONE)
        sys.stdout.flush()
        return status
    except errors.NotReachable as error:
        hint = ""
        if "Permission denied" in str(error):
            return _fail(
                NOT_ALLOWED,
                f"{error}\nOnly members of group bgtask may run tasks: adduser USER bgtask",
            )
        if error.path == "/run/bgtaskd/control.sock":
            hint = "\nIs it running? systemctl status bgtaskd.socket"
        return _fail(NOT_REACHABLE, f"{error}{hint}")
    except (errors.NoSuchTask, errors.NoSuchWorker) as error:
        return _fail(NO_SUCH_TASK, str(error))
    except errors.PermissionDenied as error:
        return _fail(NOT_ALLOWED, str(error))
    except errors.RemoteError as error:
        return _fail(FAILED, _refusal(error))
    except (errors.BgtaskdError, Problem) as error:
        return _fail(FAILED, str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except OSError as error:  # a full disk behind the redirection; no journalctl
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        what = f"{error.filename}: " if error.filename else ""
        return _fail(FAILED, f"{what}{error.strerror or error}")


def _refusal(error: errors.RemoteError) -> str:
    if error.name == "org.varlink.service.InvalidParameter":
        return f"the daemon refused: {error.parameters.get('parameter')}"
    if error.name.startswith("org.varlink.service."):
        return f"{error}: the daemon is of another version? bgtaskctl here is {bgtaskd.__version__}"
    return str(error)


def _fail(status: int, text: str) -> int:
    first, _, hint = text.partition("\n")
    print(f"bgtaskctl: {escaped(first)}", file=sys.stderr)
    if hint:
        print(escaped(hint), file=sys.stderr)
    return status


def _split(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words, and a schedule's command, which argparse cannot tell from what stands before its options."""
    if "schedule" in words and "--" in words:
        verb, end = words.index("schedule"), words.index("--")
        if words[verb + 1 : verb + 2] == ["add"] and end > verb:
            return words[:end], words[end + 1 :]
    return words, None


if __name__ == "__main__":
    sys.exit(main())
