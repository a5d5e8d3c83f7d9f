"""Make the picture of the README: headline and candidates of the page of its main job, in Chromium (extra `browser`).

python scripts/picture.py [FILE]
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from autotune.documents.problem import Problem
from autotune.exporters.folders import launches_of
from autotune.report.page.folder import page_of
from autotune.report.page.page import render_page
from autotune.searching.pools import run_search

FILE = Path(__file__).parent.parent / "docs" / "images" / "report.png"
RATE = "tokens_per_s_per_gpu"
"""Kept inside of the picture: a test says when it is out of date."""
WIDTH_PX = 1120
COLOURS = 128
HIDE = "document.querySelectorAll('nav, main > section:not(#candidates)').forEach(e => e.remove());"


def taken(html: str) -> bytes:
    """PNG of the page's headline and candidates."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        file.write_text(html, encoding="utf-8")
        driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
        try:
            size = {"width": WIDTH_PX, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(file.as_uri())
            WebDriverWait(driver, 20).until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
            driver.execute_script(HIDE)
            height = int(driver.execute_script("return document.querySelector('#candidates').getBoundingClientRect().bottom"))
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": height})
            return bytes(driver.get_screenshot_as_png())
        finally:
            driver.quit()


def main() -> int:
    """Search, draw, write."""
    problem = Problem(hardware="gb200-nvl72")
    run = run_search(problem)
    launches = launches_of(run.result.plans)
    html = render_page(page_of(problem, run.result, run.candidates, ["autotune", "search", "--hw", problem.hardware], launches))
    about = PngInfo()
    about.add_text(RATE, f"{run.result.best.prediction.tokens_per_s_per_gpu:.1f}")
    picture = Image.open(io.BytesIO(taken(html))).convert("RGB").quantize(COLOURS)
    picture.save(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE, pnginfo=about, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
