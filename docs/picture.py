"""Make docs/img/summary.png, the picture in the README, from the summary page of the newest successful run (`make picture`; needs Chromium)."""
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

import mltrader

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("Chromium is missing; `apt-get install chromium` brings it.")
    run = next(run for run in mltrader.runs() if run["status"] == "success")
    target = ROOT / "docs" / "img" / "summary.png"
    target.parent.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1060, "height": 1330})
        tab.goto((ROOT / "reports" / run["id"] / "summary.html").as_uri())
        tab.screenshot(path=target)
        browser.close()
    print(f"{target} shows {run['id']}")


if __name__ == "__main__":
    main()
