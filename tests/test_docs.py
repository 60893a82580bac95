"""The documents: links hold, the site has every page and name, notebooks run, the picture shows what was drawn."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.drawings import Drawing, write_drawing
from remoco.common.videos.files import write_video
from tests.support.places import REPO

DOCS = REPO / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(REPO.glob("*.md")), *sorted((REPO / "benchmarks").glob("*.md"))]


def texts(path: Path) -> str:
    """A page's Markdown without its code; a notebook's Markdown cells."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^( *)```.*?^\1```|`[^`\n]*`", "", path.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(REPO).as_posix())
def test_links_lead_to_files(path):
    """As on GitHub; the site's own are checked by `make docs`."""
    for target in re.findall(r"\]\(([^)\s]+)\)", texts(path)):
        if not re.match(r"https?:|#", target):
            assert (path.parent / target.partition("#")[0]).is_file(), target


def test_the_menu_has_each_page():
    def leaves(item):
        if isinstance(item, str):
            return [item]
        return [leaf for part in (item.values() if isinstance(item, dict) else item) for leaf in leaves(part)]

    menu = leaves(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"])
    pages = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in [*DOCS.glob("*.md"), *NOTEBOOKS]}
    pages |= {f"benchmarks/{path.name}" for path in (REPO / "benchmarks").glob("*.md")}
    assert len(menu) == len(set(menu)) and set(menu) == pages | {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}


@pytest.mark.slow
def test_the_site_has_each_public_name_and_asks_nothing_of_others(tmp_path):
    """`make docs`'s command: a link that leads nowhere is an error there."""
    (line,) = [line for line in (REPO / "Makefile").read_text().splitlines() if "mkdocs build" in line]
    words = line.split("$(BIN)/mkdocs ")[1].split()
    command = [sys.executable, "-m", "mkdocs", *words, "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert "--strict" in words and done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    site = tmp_path / "site"
    reference = (site / "api.html").read_text()
    packages = re.findall(r"^## `([\w.]+)`$", (DOCS / "api.md").read_text(), re.M)
    assert {"remoco", "conditions", "datamodules", "lightning_modules", "metrics", "callbacks"} <= set(packages)
    for package in packages:
        for name in import_module(package).__all__:
            assert re.search(rf'id="{package}\.{name}"', reference), f"{package}.{name}"
    for page in site.rglob("*.html"):
        asked = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="([^"]+)"', page.read_text())
        asked += re.findall(
            r'<link[^>]*\brel="(?:stylesheet|preload|preconnect)"[^>]*\bhref="([^"]+)"', page.read_text()
        )
        asked += re.findall(
            r'<link[^>]*\bhref="([^"]+)"[^>]*\brel="(?:stylesheet|preload|preconnect)"', page.read_text()
        )
        assert asked and not [url for url in asked if re.match(r"(https?:)?//", url)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """From the first cell to the last, in an empty folder; a cell that fails ends it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_the_moving_picture_shows_what_was_drawn_and_what_came_of_it(tmp_path):
    image = np.full((72, 96, 3), 60, np.uint8)
    brush = np.zeros((72, 96), np.uint8)
    brush[20:50, 10:40] = 1
    write_drawing(tmp_path / "inputs", Drawing(image, [np.array([[25.0, 35.0], [75.0, 35.0]])], brush))
    clip = np.stack([np.full((72, 96, 3), level, np.uint8) for level in (20, 120, 220)])
    write_video(tmp_path / "clip.mp4", clip, 8.0)
    out = tmp_path / "demo.webp"
    command = [sys.executable, str(DOCS / "moving_picture.py"), str(tmp_path), str(out)]
    subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, capture_output=True)
    with Image.open(out) as moving:
        assert moving.n_frames == 3 and moving.size == (2 * 384 + 8, 288)
        for number, level in enumerate((20, 120, 220)):
            moving.seek(number)
            picture = np.asarray(moving.convert("RGB")).astype(int)
            assert np.abs(picture[:, 400:] - level).max() < 12
            assert picture[35 * 4 + 2, 50 * 4].min() > 200  # the stroke, four times as large, and white
            assert picture[35 * 4 + 2, 9 * 4].max() < 90 and picture[20 * 4, 20 * 4, 1] > 150  # beside it; the outline


def test_the_readmes_picture_moves_and_is_small():
    (name,) = re.findall(r"^!\[[^\]]+\]\((.+)\)$", (REPO / "README.md").read_text(), re.M)
    with Image.open(REPO / name) as moving:
        assert moving.n_frames > 4
    assert (REPO / name).stat().st_size <= 1.5e6


def test_the_slurm_script_logs_into_no_folder_that_sbatch_lacks():
    """sbatch makes none: the job would end before its first line, without a log."""
    (name,) = re.findall(r"#SBATCH --output=(\S+)", (DOCS / "cluster.md").read_text())
    assert "/" not in name
