"""Reports: a page per question, made of its results alone."""

from benchmarks import questions, store

FOLDER = store.ROOT / "benchmarks" / "reports"


def path_of(name):
    return FOLDER / f"{name}.md"


def runs_of(name):
    """Returns the committed runs that a question reports on."""
    return store.read(*map(store.path_of, questions.result_files(name)))


def render(name, runs):
    """Returns the page of a question."""
    title, text = questions.docstring(name)
    files = ", ".join(f"{file}.jsonl" for file in questions.result_files(name))
    origin = f"`python -m benchmarks report {name}` makes this page of [{files}](../results): "
    origin += f"{len(runs)} runs."
    return "\n\n".join([f"# {title}", text, origin, questions.load(name).report(runs)]) + "\n"


def write(name):
    """Writes the page of a question and its pictures."""
    runs = runs_of(name)
    FOLDER.mkdir(exist_ok=True)
    path_of(name).write_text(render(name, runs))
    print(path_of(name))
    draw = getattr(questions.load(name), "pictures", None)
    for file, figure in draw(runs).items() if draw else ():
        figure.savefig(FOLDER / file, dpi=150)
        print(FOLDER / file)
