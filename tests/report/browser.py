"""Pages as a browser leaves them."""

import re
import subprocess
from pathlib import Path


def browse(chromium: list[str], path: Path, *options: str) -> tuple[str, list[str]]:
    """The page as it is after its scripts ran, and the lines of its console."""
    command = [*chromium, *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
