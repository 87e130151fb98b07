"""MkDocs hooks: pages written elsewhere in the repository, tutorials, formulas and pictures."""

import html
import pathlib
import posixpath
import re
import sys

import jupytext
from latex2mathml.converter import convert
from mkdocs.structure.files import File

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import rooms

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
            for suffix, content in (
                (".md", tutorial(path.stem, file.content_string)),
                (".ipynb", notebook(file.content_string, config.site_url)),
            ):
                page = str(path.with_suffix(suffix))
                files.append(File.generated(config, page, content=content))
    return files


def tutorial(name, text):
    """Returns a tutorial in percent format as Markdown, with links to itself below its title."""
    cells = jupytext.reads(text, fmt="py:percent")
    cells.metadata["jupytext"] = {"notebook_metadata_filter": "-all"}
    title, rest = jupytext.writes(cells, fmt="md").lstrip().split("\n", 1)
    links = f"This page as a [notebook]({name}.ipynb), and as a [script]({name}.py)."
    return f"{title}\n\n{links}\n{rest}"


def notebook(text, site_url):
    """Returns a tutorial as a notebook: without pictures, which it draws, and with whole links."""
    text = re.sub(r"(?m)^# !\[.*\]\(img/.*\)\n(#\n)?", "", text)
    text = re.sub(r"\]\(\.\./([\w/]+)\.(md|py)", rf"]({site_url}\1/", text)
    text = re.sub(r"\]\((\w+)\.(md|py)\b", rf"]({site_url}{TUTORIALS}\1/", text)
    cells = jupytext.reads(text, fmt="py:percent")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells.metadata = {"kernelspec": kernel}
    return jupytext.writes(cells, fmt="ipynb")


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
    return rooms.with_svg(markdown)


def on_page_content(content, page, config, files):
    content = re.sub(r'(?s)<(div|span) class="arithmatex">(.*?)</\1>([).,:;]*)', formula, content)
    content = re.sub(r"\s±\s", "\u00a0±\u00a0", content)  # A number and its error stay together.
    pictures = {file.url: file for file in files.media_files()}

    def picture(found):
        file = pictures[posixpath.normpath(posixpath.join(page.url, found[2]))]
        # Those of docs/img are transparent; site.css darkens the others, which are white.
        kind = "picture" if file.src_uri.startswith("img/") else "white picture"
        return f'<p class="{kind}"><img style="width: {width(file.content_bytes)}" {found[1]}></p>'

    return re.sub(r'<p><img ([^>]*src="([^"]*)"[^>]*?) ?/?></p>', picture, content)


def formula(found):
    """Makes MathML of a formula that `pymdownx.arithmatex` has found; a comma stays with it."""
    text = html.unescape(found[2]).strip()[2:-2]  # Without \\( and \\), or \\[ and \\].
    text = re.sub(r"\\log (?=[a-z\\])", r"\\log\\, ", text)  # latex2mathml leaves no space.
    if found[1] == "div":
        return convert(text, display="block")
    return f'<span class="formula">{convert(text)}{found[3]}</span>'


def width(png):
    """Returns the width of a picture: such that its text is as large as the page's, or nearly."""
    pixels = int.from_bytes(png[16:20])
    density = png.index(b"pHYs") + 4
    inches = pixels / int.from_bytes(png[density : density + 4]) / 0.0254
    return f"clamp({56 * inches:.0f}px, 100%, {min(pixels, 103 * inches):.0f}px)"
