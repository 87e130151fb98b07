"""Runs the tutorials and draws the pictures that their pages show.

python tools/tutorials.py --output docs/tutorials/img
"""

import argparse
import pathlib
import runpy
import warnings

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

TUTORIALS = pathlib.Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = sorted(path.stem for path in TUTORIALS.glob("*.py"))


def run(name, output):
    """Runs a tutorial, writes its pictures `<name>_<number>.png`, and returns its variables."""
    plt.close("all")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")  # `plt.show()`
        variables = runpy.run_path(str(TUTORIALS / f"{name}.py"))
    output.mkdir(parents=True, exist_ok=True)
    for number in plt.get_fignums():
        plt.figure(number).savefig(output / f"{name}_{number}.png", dpi=80)
    return variables


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results"))
    args = parser.parse_args(arguments)
    for name in args.names:
        run(name, args.output)


if __name__ == "__main__":
    main()
