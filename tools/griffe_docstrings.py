"""Griffe extension: the headings and doctests of our docstrings as Markdown.

Griffe knows `Args:`, `Returns:` and `Raises:`; the rest stands here as in Keras's own docstrings.
"""

import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text):
    text = re.sub(r"(?m)^References:\n((?: .*\n?)+)", references, text)
    text = re.sub(r"(?m)^(Formula:|Example:|Call arguments:)", r"**\1**", text)
    return re.sub(r"(?m)^>>> (?:.+\n?)+", lambda block: fenced(block[0]), text)


def references(section):
    return "**References:**\n\n" + textwrap.dedent(section[1])


def fenced(block):
    return f"```pycon\n{block.rstrip()}\n```\n"
