# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test houses by hand: ``python3 -m tests.houses {build,shell,run,console} …``."""

import argparse
import sys

from tests.houses import package, roots
from tests.houses.container import Container
from tests.houses.machine import MachineError
from tests.houses.vm import VM

SOURCE_INSIDE = "/srv/bgtaskd"


def main() -> int:
    arguments = parse()
    try:
        status: int = arguments.action(arguments)
    except (MachineError, RuntimeError, FileNotFoundError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return status


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.houses", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    build = verbs.add_parser("build", help="build the roots and the VM's image into the cache")
    build.set_defaults(action=build_all)

    console = verbs.add_parser("console", help="boot a bare VM on this terminal, as root")
    console.add_argument("--release", type=int, choices=roots.CODENAMES, default=13)
    console.set_defaults(action=console_of_vm)

    for verb, text in (
        ("shell", "a shell in a container that has bgtaskd, and this checkout under /srv/bgtaskd"),
        ("run", "run one command in such a container, and end with its exit status"),
    ):
        inside = verbs.add_parser(verb, help=text)
        inside.add_argument("--release", type=int, choices=roots.CODENAMES, default=12)
        inside.add_argument("--user", default="root", help="alice and bob may use bgtaskd")
        inside.add_argument("--bare", action="store_true", help="do not install bgtaskd")
        inside.add_argument("--peers", action="store_true", help="with the peers of the bench")
        inside.set_defaults(action=run_in_container, command=["bash", "--login"])
        if verb == "run":
            inside.add_argument("command", nargs="+")
    return parser.parse_args()


def build_all(_: argparse.Namespace) -> int:
    for release in roots.CODENAMES:
        print(roots.container_root(release))
    print(roots.browser_root(12))
    print(roots.vm_image(13).disk)
    return 0


def run_in_container(arguments: argparse.Namespace) -> int:
    binds = {package.REPOSITORY: SOURCE_INSIDE}
    lower = roots.peers_root(arguments.release) if arguments.peers else None
    with Container(arguments.release, binds=binds, lower=lower) as machine:
        if not arguments.bare:
            package.install(machine)
        return machine.interact(arguments.command, user=arguments.user)


def console_of_vm(arguments: argparse.Namespace) -> int:
    machine = VM(arguments.release)
    try:
        machine.interact()
    finally:
        machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
