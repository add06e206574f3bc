"""Headless Chromium, which is found on PATH: for the README's pictures, the tests of pages and their benchmark."""

from __future__ import annotations

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""What keeps it from asking its makers for anything."""


def find_browser() -> str | None:
    """The path of a browser; None where there is none."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)
