"""The site as it is built: `make test-docs`."""

import html.parser
import json
import posixpath
import re
import subprocess
import sys

import pytest
from processes import ROOT

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.docs
TUTORIALS = sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True)
    return folder


class Loaded(html.parser.HTMLParser):
    """Collects the sources of what a browser loads for a page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.others = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.pictures.append(attrs["src"])
        elif tag in ("script", "iframe", "source", "video") and "src" in attrs:
            self.others.append(attrs["src"])
        elif tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload"):
            self.others.append(attrs["href"])


def test_every_page_loads_whole_from_the_site(site):
    pictures = set()
    for page in site.rglob("*.html"):
        loaded = Loaded(page.read_text())
        for source in loaded.pictures + loaded.others:
            assert "//" not in source, f"{page}: {source} is loaded from elsewhere"
            base = site if source.startswith("/") else page.parent
            path = base / source.lstrip("/").split("?")[0]
            assert path.is_file(), f"{page}: {source} is not there"
            if source in loaded.pictures:
                assert path.read_bytes().startswith(b"\x89PNG"), source
                pictures.add(path.resolve())
    assert len(pictures) > 15
    shown = Loaded((site / "results" / "index.html").read_text()).pictures
    assert 6 <= len(shown) <= 9


def test_formulas_are_mathml(site):
    assert (site / "method" / "index.html").read_text().count("<math ") > 50
    for page in site.rglob("*.html"):
        assert "arithmatex" not in page.read_text()


def test_wide_pictures_stay_readable_on_a_phone(site):
    """The three matrices, 15 inches wide, scroll sideways; what is white darkens at night."""
    for page in ("results", "tutorials/decision"):
        text = (site / page / "index.html").read_text()
        assert '<p class="white picture"><img style="width: clamp(840px, 100%, 1200px)"' in text
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert text.count("<img ") == text.count('picture"><img style=')


def test_what_is_returned_is_one_item(site):
    """A sentence of several lines is not one item per line."""
    for page in (site / "api").rglob("*.html"):
        for items in re.findall(r"(?s)Returns:</span>.*?</ul>", page.read_text()):
            assert items.count("<li") == 1


def test_rooms_are_drawn(site):
    text = (site / "contributing" / "index.html").read_text()
    (drawing,) = re.findall(r'(?s)<div class="rooms"><svg.*?</svg>', text)
    assert "mermaid" not in text
    for room in ("surrogates", "losses", "tuning.grid"):
        assert f">{room}</text>" in drawing


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_is_a_notebook(site, name):
    notebook = json.loads((site / "tutorials" / f"{name}.ipynb").read_text())
    cells = {kind: [] for kind in ("markdown", "code")}
    for cell in notebook["cells"]:
        cells[cell["cell_type"]].append("".join(cell["source"]))
    for number, code in enumerate(cells["code"]):
        compile(code, f"{name} {number}", "exec")
    of_file = (ROOT / "docs" / "tutorials" / f"{name}.py").read_text()
    assert len(cells["code"]) == len(re.findall(r"(?m)^# %%$", of_file))
    # A notebook stands anywhere: its links are whole, its pictures are those that it draws.
    for link in re.findall(r"\]\(([^)]*)\)", "".join(cells["markdown"])):
        assert link.startswith("https://")
    page = (site / "tutorials" / name / "index.html").read_text()
    assert f'href="../{name}.ipynb"' in page


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("class_weight", "which_loss/"),
        ("focal", "which_loss/"),
        ("SMOTE", "which_loss/"),
        ("oversampling", "which_loss/"),
        ("macro F1", "decisions/"),
        ("threshold", "binary/"),
        ("scikit-learn", "recipes/"),
        ("costs", "decisions/"),
    ],
)
def test_search_leads_to_the_page_that_answers(site, words, page):
    """What stands in a title is found first: there the words are, as the theme cuts them."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    separator = index["config"]["separator"]
    terms = set(re.split(separator, words.lower()))

    def cut(title):
        return {term.strip(".,:") for term in re.split(separator, title.lower())}

    found = [entry["location"] for entry in index["docs"] if terms <= cut(entry["title"])]
    assert page in {posixpath.dirname(location) + "/" for location in found}
