"""A page in headless Chromium, narrow and wide, light and dark: what it measures of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
WIDTHS = (390, 1280)
# Loads the page in frames of these widths, and writes what it measures into its own body.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const results = {};
function light(colour) {
  const channels = colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255);
  const [r, g, b] = channels.map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  for (let at = element; at; at = at.parentElement) {
    const style = at.ownerDocument.defaultView.getComputedStyle(at);
    if (style.backgroundImage !== 'none') return null;
    if (!/^rgba.*, 0\\)$/.test(style.backgroundColor)) return style.backgroundColor;
  }
  return null;
}
function measure(frame, width) {
  const inner = frame.contentDocument, worst = {ratio: 99, text: ''};
  for (const element of inner.body.querySelectorAll('*:not(svg *)')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const back = own && behind(element);
    if (!back) continue;
    const pair = [light(frame.contentWindow.getComputedStyle(element).color), light(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst.ratio) Object.assign(worst, {ratio, text: element.textContent.trim().slice(0, 40)});
  }
  // The text of a drawing has its own colour, and in a cell that of the rectangle before it behind it.
  for (const element of inner.querySelectorAll('svg text')) {
    const view = frame.contentWindow, cell = element.parentElement.querySelector(':scope > rect');
    const colours = [view.getComputedStyle(element).fill, view.getComputedStyle(cell || inner.body).fill];
    if (!cell) colours[1] = view.getComputedStyle(inner.body).backgroundColor;
    const pair = colours.map(light).sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst.ratio) Object.assign(worst, {ratio, text: element.textContent.trim()});
  }
  // How wide the narrowest column of words is, how high the letters of a drawing are, and how high the page.
  const columns = [...inner.querySelectorAll('td')].filter(cell => cell.textContent.trim().length > 20);
  const narrowest = Math.min(9999, ...columns.map(cell => cell.getBoundingClientRect().width));
  const letters = Math.min(99, ...[...inner.querySelectorAll('svg')].map(
    drawing => 12 * drawing.getBoundingClientRect().width / (drawing.viewBox.baseVal.width || 1)));
  const height = inner.documentElement.scrollHeight;
  const dark = light(frame.contentWindow.getComputedStyle(inner.body).backgroundColor) < 0.2;
  const bars = inner.querySelectorAll('.track b').length;
  results[width] = {scroll: inner.documentElement.scrollWidth, worst, dark, bars, narrowest, letters, height};
}
const widths = WIDTHS;
for (const width of widths) {
  const frame = document.createElement('iframe');
  Object.assign(frame, {src: 'page.html', width, height: 100});
  frame.onload = () => {
    measure(frame, width);
    if (Object.keys(results).length === widths.length) document.body.dataset.results = JSON.stringify(results);
  };
  document.body.append(frame);
}
</script></body>"""


def measured(folder: Path, *, dark: bool) -> dict[str, dict[str, Any]]:
    """What Chromium measures of page.html, by width; its console must be empty."""
    (folder / "harness.html").write_text(HARNESS.replace("WIDTHS", str(list(WIDTHS))))
    argv = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (folder / "harness.html").as_uri(),
    ]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-results="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-2000:]
    results: dict[str, dict[str, Any]] = json.loads(found[1].replace("&quot;", '"'))
    return results
