"""The code on the documentation's pages."""

import re

from processes import ROOT


def sections(page):
    """Returns the text of each section of a page by its heading, what comes before by `""`."""
    first, *rest = re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE)
    return {"": first} | dict(section.split("\n", 1) for section in rest)


def code_blocks(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_blocks(*texts, **namespace):
    """Runs the Python of texts as one program; returns what its names stand for."""
    for block in code_blocks("".join(texts)):
        exec(compile(block, "<page>", "exec"), namespace)
    return namespace
