"""A report in a real browser: everything is drawn, nothing complains, nothing is wider than the
window, in light and in dark, on a phone and on a desk."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_report import EVIL, OTHER, W, tuned

from convtvm.report import bench, building, picture
from convtvm.report.building import Evidence

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on PATH")

# A window is 500 pixels wide at least, a frame as wide as one likes.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<iframe src="report.html" width="{width}" height="1200" style="border:0"></iframe>
<script>onmessage = (event) => (document.documentElement.dataset.found = event.data)</script>"""
# Waits until all is drawn, opens the tables, and leaves what it finds in the document.
MEASURE = """
const timer = setInterval(() => {
  const root = document.documentElement;
  if (!root.dataset.drawn || root.dataset.found) return;
  clearInterval(timer);
  document.querySelectorAll("details").forEach((each) => (each.open = true));
  const wide = [...document.querySelectorAll("body *")]
    .filter((each) => !each.closest(".scroll table, defs, #vg-tooltip-element"))
    .filter((each) => !each.children.length)
    .filter((each) => {
      const box = each.getBoundingClientRect();
      const within = each.closest(".chart")?.getBoundingClientRect(); // which cuts off what is not
      const [left, right] = within ? [within.left, within.right] : [0, window.innerWidth];
      return box.width && (box.right > right + 1 || box.left < left - 1);
    });
  const fill = (where) => getComputedStyle(document.querySelector(where)).fill;
  root.dataset.found = "yes";
  parent.postMessage(JSON.stringify({
    width: window.innerWidth,
    scrolled: root.scrollWidth,
    wide: wide.slice(0, 5).map((each) => {
      const { left, right } = each.getBoundingClientRect();
      const what = each.textContent || each.parentElement.getAttribute("class");
      return `${what} in ${each.closest("figure")?.id}, ${left} to ${right}`;
    }),
    charts: document.querySelectorAll("[data-chart]").length,
    drawn: document.querySelectorAll("[data-chart] svg .role-mark path").length,
    empty: [...document.querySelectorAll("[data-chart]")]
      .filter((each) => !each.querySelector("svg .role-mark path")).length,
    images: document.querySelectorAll("img").length,
    paper: getComputedStyle(document.body).backgroundColor,
    label: fill("[data-chart] svg .role-axis-label text"),
  }), "*");
}, 50);
"""


@cache
def content() -> str:
    """A run with a comparison of its layers, another comparison, a model's operators; odd names."""
    history = tuned([W, OTHER], trials=30)
    target = history[0].target

    def time(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "max_error": 1e-7, "workspace_bytes": 100}

    layers = [
        {
            "workload": w.key,
            "name": f"layer {number} <b>bold</b>",
            "chosen": "direct",
            "algorithms": {"direct": time(1e-3), "winograd:4": time(2e-3)},
            "peers": {"torch": time(2e-3), "openvino": time(9e-4), EVIL: time(3e-3)},
        }
        for number, w in enumerate((W, OTHER))
    ]
    names = ["direct", "im2col", "mec:b", "winograd:4", "no name of ours"]
    steps = [
        {"label": f"conv /layers/blocks.{n}/down/down.{n}/Conv", "seconds": 1e-3}
        | {"about": f"convolution by {names[n % len(names)]}"}
        for n in range(45)
    ]
    steps += [{"label": EVIL, "about": "convolution by winograd:4", "seconds": 9e-3}]
    entries: list[dict[str, Any]] = [
        {"target": target, "threads": 1, "peak_flops": 1e11, "layers": layers},
        {"target": "another", "threads": 2, "layers": layers},
        {"model": "m.onnx", "target": "t", "threads": 1, "ours": time(1), "peers": {EVIL: time(2)}},
        {"library": "m.so", "target": "t", "threads": 1, "profile": steps},
    ]
    documents = [bench.parse(entry, "x") for entry in entries]
    return building.report(Evidence(records=history, documents=documents))


def browse(folder: Path, width: int, *options: str) -> tuple[dict[str, Any], str]:
    """What MEASURE finds in a frame of that width, and what the browser's console said."""
    checksum = base64.b64encode(hashlib.sha256(MEASURE.encode()).digest()).decode()
    with_measure = content().replace("script-src ", f"script-src 'sha256-{checksum}' ", 1)
    start, end, rest = with_measure.rpartition("</body>")  # Vega's scripts hold one too
    (folder / "report.html").write_text(f"{start}<script>{MEASURE}</script>{end}{rest}", "utf8")
    (folder / "frame.html").write_text(FRAME.format(width=width), "utf8")
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--enable-logging=stderr", "--hide-scrollbars"),
            f"--user-data-dir={folder / 'user'}",
            "--window-size=1400,1300",
            "--virtual-time-budget=60000",
            *options,
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(width: int, scheme: str, tmp_path: Path) -> None:
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    found, console = browse(tmp_path, width, *dark)
    assert "CONSOLE" not in console, re.findall(r"CONSOLE.*", console)
    assert found["width"] == width
    assert found["scrolled"] <= width and found["wide"] == []
    assert found["charts"] > 12 and found["empty"] == 0 and found["drawn"] > 200
    assert found["images"] == 0  # that a name would have made
    colours = picture.DARK if scheme == "dark" else picture.LIGHT
    assert found["paper"] == rgb(colours["paper"])
    assert found["label"] == rgb(colours["muted"])
