"""The server does what its OpenAPI document says, and nothing else.

schemathesis makes requests of the document, right and wrong ones, with all checks on: right ones
are taken, wrong ones refused, and every status, header and body is one that is documented.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fake_service import FakeService
from running import running

from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions


def check(url: str, folder: Path, *arguments: str) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            command,
            "run",
            f"{url}/openapi.json",
            "--phases=coverage,fuzzing,stateful",
            "--checks=all",
            "--continue-on-failure",
            "--generation-deterministic",
            *arguments,
        ],
        cwd=folder,  # away from any configuration
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert "No issues found" in done.stdout


def test_the_server_keeps_to_its_document(served, tmp_path):
    check(served.url, tmp_path, "--max-examples=12")


def test_so_does_one_with_keys_and_several_names(tmp_path):
    options = HttpOptions(("fake", "other/name:v1"), api_keys=("sesame",))
    with running(create_app(FakeService(), options)) as url:
        check(url, tmp_path, "--max-examples=8", "--header=Authorization: Bearer sesame")
