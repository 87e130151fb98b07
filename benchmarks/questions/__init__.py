"""A question per module: what it asks, its cases, how one is measured, what the results say.

    '''Does it rain more on Mondays?      The first line of the docstring is the question.

    What was measured, and how: the text of the report, in Markdown.
    '''

    RESULTS = ("weather",)                # The files it reports on; without this, one of its name.

    def cases():                          # The settings of each run, as they are committed.
        for day in ("Monday", "Tuesday"):
            for seed in range(3):
                yield {"day": day, "seed": seed}

    def measure(day, seed):               # One run; returns what JSON holds.
        return {"millimetres": ...}

    def report(runs):                     # Markdown. A run has its "settings" and its "result".
        return stats.table(["day", "mm"], ...)

    def pictures(runs):                   # If there are any: figures by the names of their files.
        return {"weather.png": figure}

Heavy libraries that only `measure` needs are imported there, so that reports need none of them.
"""

import ast
import importlib
import pathlib

FOLDER = pathlib.Path(__file__).parent


def names():
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def docstring(name):
    """Returns the question and the text below it, without running the module."""
    doc = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    question, _, text = doc.partition("\n")
    return question, text.strip()


def load(name):
    return importlib.import_module(f"benchmarks.questions.{name}")


def result_files(name):
    """Returns the names of the files of results that a question reports on; it writes the first."""
    return getattr(load(name), "RESULTS", (name,))
