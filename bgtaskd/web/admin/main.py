# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskd-web.service: the administrator's page, by waitress. See bgtaskd-web(8)."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys

from bgtaskd.client.blocking import Client
from bgtaskd.web.admin.app import Admin
from bgtaskd.web.admin.door import Door

DIRECTORY = "/run/bgtaskd-web"
LISTEN = "127.0.0.1:8420"
EX_CONFIG = 78

log = logging.getLogger(__name__)


def main() -> int:
    """Serve until SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="bgtaskd-web", description="The administrator's page.")
    parser.add_argument(
        "--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"default: {LISTEN}"
    )
    parser.add_argument(
        "--user-header",
        metavar="NAME",
        help="in which header a proxy that has the token names its user",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        import waitress
    except ImportError:
        log.error("bgtaskd-web: needs waitress: apt install python3-waitress")
        return EX_CONFIG
    token = secrets.token_urlsafe(32)
    directory = os.environ.get("RUNTIME_DIRECTORY", DIRECTORY)
    try:
        keep(os.path.join(directory, "token"), token)
        app = Admin(Client(), Door(token, arguments.user_header))
        server = waitress.create_server(
            app,
            listen=arguments.listen,
            threads=8,
            ident=None,
            connection_limit=200,
            channel_timeout=60,
        )
    except (OSError, ValueError) as error:
        log.error("bgtaskd-web: %s, %s: %s", arguments.listen, directory, error)
        return EX_CONFIG
    log.info("the page is at http://%s/, its token in %s/token", arguments.listen, directory)
    server.run()
    return 0


def keep(path: str, token: str) -> None:
    """Write the token where its owner and root alone can read it. Raises OSError."""
    new = f"{path}.new"
    with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{token}\n")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
