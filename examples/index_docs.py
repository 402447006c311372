#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Index every document below a directory: which words are in which files. Tells how far it is as it goes.

    bgtaskctl run -f --name index-docs -- ./index_docs.py /usr/share/doc index.json

Nothing in here knows bgtaskd: progress goes to $NOTIFY_SOCKET, as any service tells systemd its status.
"""

import gzip
import json
import os
import re
import socket
import sys
from collections import defaultdict
from pathlib import Path

WORD = re.compile(r"[^\W\d_]{3,30}")


def notify(**fields: object) -> None:
    """Tell whoever started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            text = "\n".join(f"{name}={value}" for name, value in fields.items())
            sock.sendto(text.encode(), path)


def read(path: Path) -> str:
    """A document's text, unpacked where it is packed."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        return file.read().decode("utf-8", "ignore")


def main(root: str, target: str) -> None:
    """Index ``root`` into the JSON file ``target``."""
    documents = sorted(path for path in Path(root).rglob("*") if path.is_file())
    index: dict[str, set[int]] = defaultdict(set)
    for number, path in enumerate(documents):
        for word in WORD.findall(read(path).lower()):
            index[word].add(number)
        if number % 10 == 0 or number == len(documents) - 1:
            notify(X_BGTASK_FINISHED=number + 1, X_BGTASK_TOTAL=len(documents), STATUS=path.name)
    words = {word: sorted(found) for word, found in sorted(index.items())}
    Path(target).write_text(
        json.dumps({"documents": [str(one) for one in documents], "words": words})
    )
    print(f"{len(words)} words in {len(documents)} documents, indexed in {target}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: index_docs.py DIRECTORY [INDEX.json]")
    try:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "index.json")
    except OSError as error:
        sys.exit(f"index_docs.py: {error.filename}: {error.strerror}")
