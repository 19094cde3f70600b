"""The pictures of README.md, from a finished run of simulated patients: ``python tests/readme_pictures.py demo``.

The first screen of the front page, as a browser shows it, and the figure of notebook 04 that puts real images beside
synthetic ones. Written into ``pictures/``, below 300 kB each.
"""

import argparse
import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from nafld_utils import artifacts
from nafld_utils.report import notebooks, pictures

FOLDER = Path(__file__).resolve().parent.parent / "pictures"
LIMIT = 300_000  # bytes
NAMES = ("front-page.png", "real-beside-synthetic.png")


def front_page(browser, run):
    """The front page down to the end of its cards, in a window of 1280 x 800."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page.goto((run.reports / "index.html").resolve().as_uri())
    height = page.evaluate("document.querySelector('.cards').getBoundingClientRect().bottom + 12")
    seen = page.screenshot(clip={"x": 0, "y": 0, "width": 1280, "height": height}, full_page=True)
    page.close()
    return Image.open(io.BytesIO(seen))


def beside(run):
    """The figure of notebook 04 that its answer rests on."""
    for cell in notebooks.read_notebook(run, "04_sampling").cells:
        if pictures.ANSWER_FIGURE in cell.metadata.get("tags", []):
            (output,) = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    raise ValueError(f"run {run.name!r}: expected a cell of notebook 04 tagged {pictures.ANSWER_FIGURE}, found none.")


def write(browser, run, folder):
    """Write both pictures, as wide as needed to stay below `LIMIT`; refuse a run that is not of simulated patients."""
    if not run.is_simulated:
        raise ValueError(
            f"run {run.name!r}: expected simulated patients, found others; no picture of them is published."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(NAMES, (front_page(browser, run), beside(run)), strict=True):
        picture = picture.convert("RGB")
        for width in range(min(1280, picture.width), 0, -80):
            size, buffer = (width, round(picture.height * width / picture.width)), io.BytesIO()
            picture.resize(size, Image.Resampling.LANCZOS).quantize(256).save(buffer, "PNG", optimize=True)
            if len(buffer.getvalue()) < LIMIT:
                break
        (folder / name).write_bytes(buffer.getvalue())


def main(arguments=None):
    """Write the pictures of a run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="name of a finished run of simulated patients")
    run = artifacts.open_run("demo", run=parser.parse_args(arguments).run)
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        write(browser, run, FOLDER)
        browser.close()
    print(f"written: {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
