"""What mkdocs is told beside mkdocs.yml: Markdown from outside of docs/, notebooks as pages, and the Python names.

The sources stay as they read on GitHub; here their links are moved to where the site has them.
"""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parents[1]
ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README is the first page; what else lies beside docs/ keeps its name, and a notebook becomes its Markdown."""
    for name, uri in ABOVE.items():
        text = re.sub(r"\]\(docs/", "](", (REPO / name).read_text())
        files.append(File.generated(config, uri, content=text))
    for path in sorted((REPO / "benchmarks").glob("*.md")):
        text = path.read_text().replace("](../docs/", "](../")
        files.append(File.generated(config, f"benchmarks/{path.name}", content=text))
    for path in sorted((REPO / "docs").rglob("*.ipynb")):
        notebook = files.get_file_from_path(path.relative_to(REPO / "docs").as_posix())
        if notebook is not None:
            files.remove(notebook)
            files.append(File.generated(config, str(Path(notebook.src_uri).with_suffix(".md")), content=as_page(path)))
    return files


def as_page(path: Path) -> str:
    """A notebook's cells as Markdown; they are kept without outputs."""
    cells = json.loads(path.read_text())["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    blocks = [f"```python\n{text}\n```" if code else text for text, code in texts]
    said = f"This page is the notebook `{path.relative_to(REPO).as_posix()}`, for Jupyter or your editor."
    return "\n\n".join([blocks[0], said, *blocks[1:]])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what the site has elsewhere; under each heading `package` of api.md what mkdocstrings says of it.

    Python's Markdown wants what belongs to an item of a list 4 spaces in, where GitHub is content with 2.
    """
    markdown = re.sub(r"^  (?=\|)", "    ", markdown, flags=re.M)
    markdown = re.sub(r"\]\(\.\./(CONTRIBUTING|CHANGELOG|benchmarks/)", r"](\1", markdown)
    markdown = re.sub(r"\]\(([\w/.]+)\.ipynb\)", r"](\1.md)", markdown)
    if page.file.src_uri == "api.md":
        markdown = re.sub(r"^## `([\w.]+)`\n\n(.+)$", r"## `\1`\n\n\2\n\n::: \1\n", markdown, flags=re.M)
        # half of the pipeline is in the class below it
        markdown = markdown.replace("::: remoco\n", "::: remoco\n    options: {inherited_members: true}\n")
    return markdown
