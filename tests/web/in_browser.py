"""What tests of the page in Chromium share."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

CHROMIUM = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path or at EDJE_CHROMIUM"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
]
DROP = """([data, on]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
    for (const kind of ["dragenter", "drop"])
        (on ? document.querySelector(on) : window)
            .dispatchEvent(new DragEvent(kind, { dataTransfer, cancelable: true, bubbles: true }));
}"""


def until(holds: Callable[[], Any]) -> None:
    """Wait; the page's policy forbids what Playwright would look with."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
