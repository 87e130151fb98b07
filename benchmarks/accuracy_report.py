"""The tables and pictures of `accuracy.py`, from its lines of JSON."""

import json
import math
import statistics
from collections import defaultdict

import long_tailed_cifar

BASES = {"ce": "recalls", "ce, post-hoc": "recalls_of_posterior", "logit_adjusted": "recalls"}


def report(paths, pictures=None):
    """Prints a Markdown table for each data set, profile, ratio and recipe."""
    tables = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for run in long_tailed_cifar.read_results(path):
            settings = run["settings"]
            names = ("dataset", "profile", "ratio", "held_out")
            condition = json.dumps([[settings[name] for name in names], run["recipe"]])
            tables[condition][settings["loss"], settings["l2"]][settings["seed"]] = run["result"]
    tables = dict(sorted(tables.items(), key=lambda item: json.loads(item[0])[0]))
    print_summary(tables)
    for condition, of_losses in tables.items():
        title, recipe = title_of(condition), json.loads(condition)[1]
        print(f"\n### {title}\n")
        print(", ".join(f"{key} {value}" for key, value in recipe.items()) + "\n")
        print_table(of_losses)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"{title.replace(', ', '_').replace(' ', '_')}.png"
            draw(of_losses, title, path)
            print(f"\nPicture: {path}")


def title_of(condition):
    (dataset, profile, ratio, held_out), recipe = json.loads(condition)
    title = f"{dataset}, {profile}, ratio {ratio:g}, {recipe['epochs']} epochs"
    return title + (f", on {held_out:.0%} of the tail, held out" if held_out else "")


def print_summary(tables):
    """Prints the argmax of the logits of the losses that several test sets have."""
    cells = defaultdict(dict)
    conditions = [condition for condition in tables if not json.loads(condition)[0][-1]]
    for condition in conditions:
        for (loss, _), runs in tables[condition].items():
            cells[loss][condition] = mean_and_error(balanced(runs, "recalls").values())
            if loss == "ce":
                post_hoc = balanced(runs, "recalls_of_posterior").values()
                cells["ce, post-hoc"][condition] = mean_and_error(post_hoc)
    print("\n### Summary\n")
    print("| loss | " + " | ".join(map(title_of, conditions)) + " |")
    print("|---" * (len(conditions) + 1) + "|")
    for loss, of_loss in sorted(cells.items(), key=lambda item: -len(item[1])):
        if len(of_loss) > 1 or len(conditions) == 1:
            row = [of_loss.get(condition, "") for condition in conditions]
            print("| " + " | ".join([loss, *row]) + " |")


def print_table(of_losses):
    bases = {}
    for name, decision in BASES.items():
        found = [runs for (loss, _), runs in of_losses.items() if loss == name.split(",")[0]]
        if len(found) == 1:
            bases[name] = balanced(found[0], decision)
        elif found:
            print(f"(No difference to {name}: it was trained with {len(found)} values of L2.)\n")
    columns = ["loss", "L2", "seeds", "logits", "posterior", "worst class", "train"]
    columns += [f"logits - {name}" for name in bases]
    columns += [f"posterior - {name}" for name in bases if "post-hoc" in name]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for (loss, l2), runs in ranked(of_losses):
        logits, posterior = (balanced(runs, key) for key in ("recalls", "recalls_of_posterior"))
        row = [loss, f"{l2:g}", len(runs)]
        row += [mean_and_error(logits.values()), mean_and_error(posterior.values())]
        worst = [100 * min(known(run["recalls"])) for run in runs.values()]
        row.append(f"{statistics.mean(worst):.1f}")
        row.append(f"{statistics.mean(balanced(runs, 'train_recalls').values()):.1f}")
        row += [difference(logits, base) for base in bases.values()]
        row += [difference(posterior, base) for name, base in bases.items() if "post-hoc" in name]
        print("| " + " | ".join(map(str, row)) + " |")


def balanced(runs, decision):
    """Returns the balanced accuracy in percent of each seed."""
    return {seed: 100 * statistics.mean(known(run[decision])) for seed, run in runs.items()}


def known(recalls):
    """A class too small for the hold-out has no recall there."""
    return [recall for recall in recalls if recall is not None]


def ranked(of_losses):
    """Returns the losses, best first by the argmax of their logits."""
    return sorted(
        of_losses.items(), key=lambda item: -statistics.mean(balanced(item[1], "recalls").values())
    )


def difference(values, base):
    """Returns the mean difference over the seeds that both have; nothing to itself."""
    seeds = sorted(values.keys() & base.keys())
    if values == base or not seeds:
        return ""
    return mean_and_error([values[seed] - base[seed] for seed in seeds], sign="+")


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def mean_and_error(values, sign=""):
    values = list(values)
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {standard_error(values):.1f}" if len(values) > 1 else mean


def draw(of_losses, title, path):
    """Draws the mean and standard error of both decisions of every loss."""
    from matplotlib import pyplot

    rows = ranked(of_losses)[::-1]
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.25 * len(rows)), layout="constrained")
    for decision, marker in (("recalls_of_posterior", "s"), ("recalls", "o")):
        values = [list(balanced(runs, decision).values()) for _, runs in rows]
        axes.errorbar(
            [statistics.mean(of_seeds) for of_seeds in values],
            range(len(rows)),
            xerr=[standard_error(of_seeds) for of_seeds in values],
            fmt=marker,
            fillstyle="none" if marker == "s" else "full",
            label={"o": "argmax of the logits", "s": "argmax of the posterior"}[marker],
        )
    axes.set_yticks(range(len(rows)), [f"{loss}, L2 {l2:g}" for (loss, l2), _ in rows])
    axes.set(title=title, xlabel="balanced accuracy, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
