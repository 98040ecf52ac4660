"""The sandbox as a process of its own: started on free ports, controlled over HTTP."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Sandbox:
    """A running sandbox: its access file and its control API."""

    access: dict[str, Any]

    @property
    def base_url(self) -> str:
        return str(self.access["base_url"])

    def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the control API, e.g. control("POST", "/clock", {"now": ...}); returns the JSON answer."""
        answer = requests.request(
            method,
            self.access["control"]["url"] + path,
            json=body,
            headers={"Authorization": f"Bearer {self.access['control']['token']}"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()

    def connections(self) -> dict[str, str]:
        """AIRFLOW_CONN_* variables that point at this sandbox."""
        from nightmarket.local.connections import connection_environment

        return connection_environment(self.access)


def start_sandbox(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Sandbox]:
    """Start `python -m sandbox` on free ports and wait until it answers."""
    access_file = folder / "access.json"
    log = (folder / "sandbox.log").open("wb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sandbox",
            "--port",
            "0",
            "--smtp-port",
            "0",
            "--access-file",
            str(access_file),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 200  # a few seconds, but not on a machine that is busy with something else
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the sandbox ended at once: {(folder / 'sandbox.log').read_text()[-2000:]}")
        if access_file.exists():
            return process, Sandbox(json.loads(access_file.read_text()))
        time.sleep(0.1)
    process.kill()
    raise RuntimeError("the sandbox did not come up within 200 s")
