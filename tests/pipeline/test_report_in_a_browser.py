"""The page of a report in headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue.plan import Asked, Request
from dca.cli import options
from dca.foundation import documents
from dca.foundation.timeline import ObjectTime
from dca.pipeline import report
from dca.pipeline.report import page
from tests.pipeline.test_report import TIMES, saved
from tests.resolve.test_resolve import planned

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed"),
]
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
  for (const element of inner.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const back = own && behind(element);
    if (!back) continue;
    const pair = [light(frame.contentWindow.getComputedStyle(element).color), light(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst.ratio) Object.assign(worst, {ratio, text: element.textContent.trim().slice(0, 40)});
  }
  const dark = light(frame.contentWindow.getComputedStyle(inner.body).backgroundColor) < 0.2;
  const bars = inner.querySelectorAll('.track b').length;
  results[width] = {scroll: inner.documentElement.scrollWidth, worst, dark, bars};
}
const widths = WIDTHS;
for (const width of widths) {
  const frame = document.createElement('iframe');
  Object.assign(frame, {src: 'page.html', width, height: 4000});
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_off_and_every_text_can_be_read(dark: bool, tmp_path: Path) -> None:
    """With long names, many lanes and several modules, of which one object was stopped."""
    plan = planned(Request(recipe="vllm-0.10.2"))
    long = "source/csrc/quantization/" + "fused_kernels_" * 12 + ".cu"
    more = [
        ObjectTime(source=long, module=f"_module_{n}", started=10 + n, ended=60 + n, sources={long: 1}, finished=n != 6)
        for n in range(7)
    ]
    saved(tmp_path, plan, TIMES.model_copy(update={"objects": (*TIMES.objects, *more), "error": "DCA-603"}))
    documents.write(Asked(request=Request(source="/a/path/" + "that-is-very-long-" * 9)), tmp_path / "request.json")
    text = page.render(report.read(tmp_path, options.spelled))
    # What is folded is checked too.
    (tmp_path / "page.html").write_text(text.replace("<details>", "<details open>"))
    for width, result in measured(tmp_path, dark=dark).items():
        assert result["scroll"] <= int(width), (width, result)
        assert result["dark"] == dark
        assert result["bars"] == len(TIMES.stages) + len(TIMES.objects) + len(more)
        assert result["worst"]["ratio"] >= 4.5, (width, result["worst"])
