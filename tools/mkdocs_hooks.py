"""MkDocs hooks: pages that are written once, elsewhere in the repository, and tutorials."""

import pathlib
import posixpath
import re

import jupytext
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# A page of the site, and the file that it shows.
PAGES = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
REPORTS = sorted((ROOT / "benchmarks" / "reports").iterdir())
PAGES |= {f"reports/{path.name}": f"benchmarks/reports/{path.name}" for path in REPORTS}
TUTORIALS = "tutorials/"


def on_files(files, config):
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_bytes()))
    for file in list(files):
        path = pathlib.PurePosixPath(file.src_uri)
        if file.src_uri.startswith(TUTORIALS) and path.suffix == ".py":
            page = str(path.with_suffix(".md"))
            files.append(File.generated(config, page, content=tutorial(path.name, file)))
    return files


def tutorial(name, file):
    """Returns a tutorial in percent format as Markdown, with a link to itself below its title."""
    notebook = jupytext.reads(file.content_string, fmt="py:percent")
    notebook.metadata["jupytext"] = {"notebook_metadata_filter": "-all"}
    title, rest = jupytext.writes(notebook, fmt="md").lstrip().split("\n", 1)
    link = f"[{name}]({name}) is this page as a file that runs, and that Jupyter opens."
    return f"{title}\n\n{link}\n{rest}"


def on_page_markdown(markdown, page, config, files):
    source = PAGES.get(page.file.src_uri)
    here = posixpath.dirname(source or f"docs/{page.file.src_uri}")

    def within_the_repository(link):
        path = posixpath.normpath(posixpath.join(here, link[0]))
        if not (ROOT / path).exists():
            return link[0]  # MkDocs says that it is broken.
        for name, shown in PAGES.items():
            path = f"docs/{name}" if path == shown else path
        if path.startswith("docs/"):
            return posixpath.relpath(path, posixpath.dirname(f"docs/{page.file.src_uri}"))
        return f"{config.repo_url}/blob/main/{path}"

    def within_the_site(link):
        path = link[1].strip("/") or "index"
        return path if "." in path else f"{path}.md"

    # Relative links are right on GitHub: on the site, files outside `docs` are elsewhere. README's
    # are absolute, so that it can be read anywhere: as relative ones MkDocs checks them.
    markdown = re.sub(r"(?<=\]\()[\w.-][\w./-]*(?=[)#])", within_the_repository, markdown)
    if source:
        markdown = re.sub(re.escape(config.site_url) + r"([\w./-]*)", within_the_site, markdown)
    return markdown
