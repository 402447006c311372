# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: an ordinary user has every document of a fresh machine indexed in the background."""

import json
import shlex
import sys

from tests.houses import package
from tests.houses.container import Container
from tests.houses.roots import say

USER = "alice"
INDEXER = "/usr/share/doc/bgtaskd/examples/index_docs.py"
JOB = ["/usr/bin/python3", INDEXER, "/usr/share/doc"]


def main() -> int:
    release = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    say(f"booting a container with Debian {release}")
    with Container(release) as machine:
        say("installing bgtaskd in it, with apt")
        package.install(machine)
        say(f"everything from here on is typed by {USER}, an ordinary user in the group bgtask\n")
        status = show(machine, "bgtaskctl", "run", "-f", "--name", "index-docs", "--", *JOB)
        listed = machine.output("bgtaskctl", "list", "--all", "-o", "json", user=USER)
        task = max(json.loads(listed), key=lambda task: int(task["id"]))
        # systemctl's manners: the status of a task that has ended is 3, which is no failure here.
        show(machine, "bgtaskctl", "status", "--no-pager", str(task["id"]))
        status |= show(machine, "journalctl", "--no-pager", "-u", task["unit"])
        return status


def show(machine: Container, *command: str) -> int:
    """Type one command, on the caller's terminal if there is one."""
    print(f"{USER}$ {shlex.join(command)}", flush=True)
    status = machine.interact(command, user=USER)
    print(flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
