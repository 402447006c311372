# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent inside a virtual machine: runs the commands that come in on a virtio port.

Installed into the image as /usr/local/sbin/house-agent, and run with one argument: the port. One
JSON object a line, both ways; bytes as base64. First it says ``{"hello": BOOT_ID}``. A request is
``{"id", "argv", "env", "input", "timeout"}``; its reply ``{"id", "returncode", "stdout",
"stderr"}``, the return code null if the time was over. Requests are served side by side.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    port = os.open(sys.argv[1], os.O_RDWR)
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(port, data) :]

    def serve(request: dict[str, Any]) -> None:
        say({"id": request["id"], **answer(request)})

    say({"hello": Path("/proc/sys/kernel/random/boot_id").read_text().strip()})
    with os.fdopen(os.dup(port), "rb", buffering=1 << 16) as lines:
        for line in lines:
            threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        process = subprocess.Popen(
            request["argv"],
            env=request["env"],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return {"returncode": 127, "stdout": "", "stderr": encode(f"{error}\n".encode())}
    data = base64.b64decode(request["input"])
    try:
        stdout, stderr = process.communicate(data, timeout=request["timeout"])
    except subprocess.TimeoutExpired as expired:
        os.killpg(process.pid, 9)
        process.wait()
        told = [encode(part or b"") for part in (expired.stdout, expired.stderr)]
        return {"returncode": None, "stdout": told[0], "stderr": told[1]}
    return {
        "returncode": process.returncode,
        "stdout": encode(stdout),
        "stderr": encode(stderr),
    }


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
