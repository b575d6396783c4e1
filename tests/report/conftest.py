"""A browser for the tests of pages."""

import os
import shutil

import pytest


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> list[str]:
    """The command that opens a page without a window; skips where no Chromium is installed, except in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have Chromium: apt-get install chromium")
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    quiet = "no-first-run disable-background-networking disable-component-update disable-sync hide-scrollbars"
    flags = f"headless no-sandbox disable-gpu {quiet} enable-logging=stderr v=0 virtual-time-budget=5000".split()
    profile = tmp_path_factory.mktemp("profile")
    return [found, *(f"--{flag}" for flag in flags), f"--user-data-dir={profile}"]
