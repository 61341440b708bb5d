"""Pages of reports, read: what they carry, and what a browser makes of them."""

import base64
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

LIMIT = 6_000_000
_TAGS = "script|link|img|iframe|source|video|audio|embed|object|base"
_SOURCES = re.compile(
    rf"""<(?:{_TAGS})\b[^>]*?\s(?:src|srcset|href|data)\s*=\s*["']?\s*(?:https?:)?//""", re.I
)


def carried(text: str) -> dict[str, Any]:
    """Return the data of the page's script."""
    found = re.findall(r'<script type="application/json" id="marginlab-data">(.*?)</script>', text)
    assert len(found) == 1
    return json.loads(found[0])


def assert_report(file: Path) -> dict[str, Any]:
    """Check that a page is one small file that asks nothing of a host, and that its filter works.

    Every cell that a trace or a row names is one of the page's, and some trace names some.
    """
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT
    assert "default-src 'none'" in text[:2000]
    assert not _SOURCES.search(re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", text, flags=re.S))
    data = carried(text)
    metas = re.findall(r'"marginlab":\s*\{"cells":\s*\[([\d, ]*)\]', text)
    assert metas
    named = {int(number) for meta in metas for number in meta.split(",") if number.strip()}
    assert named
    assert named <= set(range(len(data["runs"][0]["cells"])))
    return data


def browse(file: Path, actions: str, folder: Path) -> Any:
    """Return what a script returns that acts on a page in Chromium, without a network.

    Args:
        file: The page.
        actions: The body of an async function.
        folder: A place for the page with the script.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromium = chromium or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed, so nothing can click on the page")
    probe = (
        "<script>addEventListener('load', () => setTimeout(async () => { let said; try { said = "
        f"await (async () => {{{actions}}})(); }} catch (error) {{ "
        "said = {error: String(error)}; } const told = document.createElement('pre'); "
        "told.id = 'told'; told.textContent = "
        "btoa(encodeURIComponent(JSON.stringify(said))); document.body.append(told); }, 200))"
        "</script></body>"
    )
    acted = folder / "acted.html"
    head, _, tail = file.read_text(encoding="utf-8").rpartition("</body>")
    acted.write_text(head + probe + tail, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    flags += [f"--user-data-dir={folder / 'browser'}", "--dump-dom"]
    found = None
    for budget in (30_000, 300_000, 3_000_000):  # a busy machine is slow to act in its virtual time
        command = [chromium, *flags, f"--virtual-time-budget={budget}", acted.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r'<pre id="told">([^<]*)</pre>', done.stdout)
        if found:
            break
    assert found, done.stderr[-1000:]
    said = json.loads(urllib.parse.unquote(base64.b64decode(found[1]).decode()))
    assert "error" not in said, said
    return said
