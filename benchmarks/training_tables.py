"""The tables that questions make of trainings on long tails."""

import json
import statistics
from collections import defaultdict
from typing import NamedTuple

from benchmarks import stats
from benchmarks.training import Recipe, known

BY_POSTERIOR = ", by posterior"  # A loss's name alone: by the argmax of the logits.
BASES = ("ce", "ce" + BY_POSTERIOR, "logit_adjusted")
PROBABILITY_SCORES = {"calibration_error": "calibration error", "log_loss": "log loss"}
# What each of the questions compares.
PAIRS = (
    ("logit_adjusted", "ce"),
    ("logit_adjusted", "ce" + BY_POSTERIOR),
    ("logit_adjusted", "weighted"),
    ("gca", "weighted"),
    ("gca", "logit_adjusted"),
    ("gca" + BY_POSTERIOR, "logit_adjusted"),
    ("gca" + BY_POSTERIOR, "ce" + BY_POSTERIOR),
    ("gca_consistent", "gca"),
    ("gca_counts", "weighted"),
    ("gca_counts_consistent", "weighted"),
    ("ce_drw", "logit_adjusted"),
    ("gca_deferred", "logit_adjusted"),
    ("gca_deferred" + BY_POSTERIOR, "logit_adjusted"),
    ("gca_consistent_deferred", "logit_adjusted"),
    ("gca_consistent_deferred", "ce" + BY_POSTERIOR),
    ("gla_q0.1", "logit_adjusted"),
    ("gla_q0.2", "logit_adjusted"),
    ("gla_q0.3", "logit_adjusted"),
    ("gla_q0.5", "logit_adjusted"),
    *((f"gla_q{q}_tau1", "logit_adjusted") for q in (0.7, 0.9)),
    ("gla_q0.2_tau1", "gla_q0.2"),
    ("gla_q0.3_tau1", "gla_q0.3"),
    ("gla_q0.5_tau1", "gla_q0.5"),
    ("gca_q0.2", "gca"),
    ("gla_q0_then_q0.3", "logit_adjusted"),
    ("gla_q0_then_q0.3", "ce" + BY_POSTERIOR),
    ("gca_consistent_q0_then_q0.3", "gca_consistent"),
    ("gla_margins", "logit_adjusted"),
    ("gla_margins", "ce" + BY_POSTERIOR),
    ("ldam_drw", "logit_adjusted"),
    ("vs", "logit_adjusted"),
    ("effective", "weighted"),
)

HINDSIGHT = ("logit_adjusted", "gla_q0.3_tau1", "gla_q0.7_tau1", "gla_q0.9_tau1")


class Condition(NamedTuple):
    """What all trainings of a table have in common."""

    dataset: str
    profile: str
    ratio: float
    held_out: float
    label_noise: str
    n_max: int
    recipe: str

    @property
    def title(self):
        recipe = json.loads(self.recipe)
        title = f"{self.dataset}, {self.profile}, ratio {self.ratio:g}, {recipe['epochs']} epochs"
        if "dtype" in recipe:
            title += f", {recipe['dtype']}"
        if self.n_max:
            title += f", at most {self.n_max} images of a class"
        if self.label_noise:
            kind, rate = self.label_noise.split(":")
            title += f", {float(rate):.0%} wrong labels ({kind})"
        return title + (f", on {self.held_out:.0%} of the tail, held out" if self.held_out else "")


def by_condition(runs):
    """Returns `{condition: {(loss, L2): {seed: result}}}`, sorted by condition."""
    found = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        settings = run["settings"]
        recipe = {name: settings[name] for name in Recipe._fields if name in settings}
        condition = Condition(
            *(settings[name] for name in ("dataset", "profile", "ratio", "held_out")),
            settings.get("label_noise", ""),
            settings.get("n_max", 0),
            json.dumps(recipe),
        )
        found[condition][settings["loss"], settings["l2"]][settings["seed"]] = run["result"]
    return dict(sorted(found.items(), key=lambda item: item[0][:-1]))


def tested(conditions):
    """Returns the conditions without a hold-out: those on the test set."""
    return {condition: of for condition, of in conditions.items() if not condition.held_out}


def summary(tested):
    """Returns the losses that several test sets have, by each decision that makes a difference."""
    rows = []
    for loss in dict.fromkeys(loss for of_losses in tested.values() for loss, _ in of_losses):
        of_logits = [decided(of_losses, loss) for of_losses in tested.values()]
        of_posterior = [decided(of_losses, loss + BY_POSTERIOR) for of_losses in tested.values()]
        if len(tested) > 1 and sum(map(bool, of_logits)) == 1:
            continue
        for name, values in ((loss, of_logits), (loss + BY_POSTERIOR, of_posterior)):
            cells = [stats.mean_and_error(of_seeds.values()) for of_seeds in values]
            if name == loss or cells != rows[-1][1:]:
                rows.append([name, *cells])
    rows.sort(key=lambda row: row.count(""))
    return stats.table(["loss", *(condition.title for condition in tested)], rows)


def differences(tested):
    """Returns the differences that answer the questions, paired by seed."""
    rows = []
    for name, base in PAIRS:
        row = [
            stats.difference(decided(of_losses, name), decided(of_losses, base))
            for of_losses in tested.values()
        ]
        if any(row):
            rows.append([f"{name} - {base}", *row])
    return stats.table(["difference", *(condition.title for condition in tested)], rows)


def choices(tables, candidates):
    """Returns what the hold-out of each seed chooses, and its test score against the best loss.

    The best is one loss for all seeds, by its mean on the test set: what nobody can know before.
    """
    rows = []
    for condition, of_losses, of_tested in with_hold_outs(tables):
        held_out = {loss: decided(of_losses, loss) for loss in candidates}
        tested = {loss: decided(of_tested, loss) for loss in candidates}
        seeds = set.intersection(*map(set, held_out.values()), *map(set, tested.values()))
        if not seeds:
            continue
        choices = {
            seed: max(candidates, key=lambda loss, seed=seed: held_out[loss][seed])
            for seed in sorted(seeds)
        }
        chosen = {seed: tested[loss][seed] for seed, loss in choices.items()}
        of_seeds = {loss: {seed: tested[loss][seed] for seed in choices} for loss in candidates}
        best = max(candidates, key=lambda loss: statistics.mean(of_seeds[loss].values()))
        rows.append([condition.title, ", ".join(choices.values())])
        rows[-1] += [stats.mean_and_error(chosen.values()), best]
        rows[-1] += [
            stats.mean_and_error(of_seeds[best].values()),
            stats.difference(chosen, of_seeds[best]),
        ]
    columns = ["condition", "chosen, by seed", "tested", "best on the test set", "tested"]
    return stats.table([*columns, "chosen - best"], rows)


def by_offsets(tables):
    """Returns what a custom decision adds: the offset that is best on the hold-out."""
    rows = []
    for condition, of_losses, of_tested in with_hold_outs(tables):
        for (loss, l2), held_out in of_losses.items():
            tested = of_tested.get((loss, l2), {})
            seeds = [
                seed
                for seed in sorted(tested)
                if "offsets" in held_out.get(seed, {}) and "offsets" in tested[seed]
            ]
            if not seeds:
                continue
            offsets = {seed: held_out[seed]["offsets"] for seed in seeds}
            chosen = {seed: best_offset(of) for seed, of in offsets.items()}
            by_offset = {seed: 100 * tested[seed]["offsets"][chosen[seed]] for seed in seeds}
            runs = {seed: tested[seed] for seed in seeds}
            logits, posterior = (balanced(runs, key) for key in ("recalls", "recalls_of_posterior"))
            row = [condition.title, loss]
            row += [stats.mean_and_error(of.values()) for of in (logits, posterior, by_offset)]
            rows.append([*row, ", ".join(f"{float(tau):g}" for tau in chosen.values())])
    columns = ["condition", "loss", "logits", "posterior", "by offset", "offset, by seed"]
    return stats.table(columns, rows)


def hindsight(tested):
    """Returns whether any offset after logit adjustment does what q does, where labels are wrong.

    It is one offset for all seeds, the best on the test set: what nobody can know before.
    """
    base, *others = HINDSIGHT
    rows = []
    for condition, of_losses in tested.items():
        noise, logits = condition.label_noise, decided(of_losses, base)
        gained = [decided(of_losses, loss) for loss in others]
        if not (noise and logits and any(gained)):
            continue
        (runs,) = (of_seeds for (loss, _), of_seeds in of_losses.items() if loss == base)
        curves = [run["offsets"] for run in runs.values()]
        best = best_offset({tau: statistics.mean(of[tau] for of in curves) for tau in curves[0]})
        by_offset = {seed: 100 * run["offsets"][best] for seed, run in runs.items()}
        row = [condition.title, stats.mean_and_error(logits.values())]
        row += [stats.mean_and_error(by_offset.values()), f"{float(best):g}"]
        rows.append(row + [stats.difference(of_seeds, by_offset) for of_seeds in gained])
    columns = ["condition", base, "by its best offset", "offset"]
    return stats.table([*columns, *(f"{loss} - that" for loss in others)], rows)


def best_offset(curve):
    """Returns the offset of the highest score, of several the middle one, of two the larger."""
    best = [tau for tau, score in curve.items() if score == max(curve.values())]
    return best[len(best) // 2]


def with_probabilities(tested):
    """Yields condition, loss and what `probabilities.score` found, of each seed that has it."""
    for condition, of_losses in tested.items():
        for (loss, _), runs in of_losses.items():
            if found := [of for run in runs.values() if (of := run.get("probabilities"))]:
                yield condition.title, loss, found


def probabilities(tested):
    """Returns how right the posterior in a known mix is, before and after `calibrate`.

    Beside the calibration error stands what right probabilities would have on as many images.
    """
    rows = []
    for title, loss, found in with_probabilities(tested):
        temperatures = known([of["temperature"] for of in found])
        row = [title, loss, len(found)]
        row.append(f"{statistics.geometric_mean(temperatures):.2f}" if temperatures else "")
        states = [state for state in ("before", "after") if state in found[0]]
        for score in PROBABILITY_SCORES:
            for power in ("1.0", "0.0", "-1.0"):
                means = [
                    statistics.mean(of[state][power]["known"][score] for of in found)
                    for state in states
                ]
                cell = " to ".join(f"{mean:.3f}" for mean in means)
                if score == "calibration_error":
                    floor = statistics.mean(of[states[-1]][power]["floor"] for of in found)
                    cell += f" ({floor:.3f})"
                row.append(cell)
        rows.append(row)
    columns = ["condition", "trained with", "seeds", "temperature"]
    return stats.table(columns + of_both_scores("as in training", "equal", "reversed"), rows)


def changed_mixes(tested):
    """Returns what knowing the mix is worth, and estimating it.

    Means over those of the five mixes of each seed of which there is an estimate; after
    `calibrate`, except for the losses that it does not take.
    """
    columns = ["condition", "trained with", "mixes"]
    columns += of_both_scores("mix known", "estimated", "of training")
    columns.append("estimate wrong by, %")
    rows = []
    for title, loss, found in with_probabilities(tested):
        every = [mix for of in found for mix in of.get("after", of["before"]).values()]
        of_mixes = [mix for mix in every if "estimated" in mix]
        row = [title, loss, f"{len(of_mixes)} of {len(every)}"]
        if of_mixes:
            for score in PROBABILITY_SCORES:
                for given in ("known", "estimated", "training"):
                    row.append(f"{statistics.mean(mix[given][score] for mix in of_mixes):.3f}")
            distance = statistics.mean(mix["estimated"]["distance"] for mix in of_mixes)
            row.append(f"{100 * distance:.1f}")
        rows.append(row + [""] * (len(columns) - len(row)))
    return stats.table(columns, rows)


def of_both_scores(*mixes):
    """Returns the columns of a calibration error and of a log loss in each mix."""
    return [f"{name}, {mix}" for name in PROBABILITY_SCORES.values() for mix in mixes]


def with_hold_outs(conditions):
    """Yields each condition that has a hold-out, the results there, and those on the test set."""
    for condition, of_losses in conditions.items():
        if condition.held_out:
            condition = condition._replace(held_out=0.0)
            yield condition, of_losses, conditions.get(condition, {})


def decided(of_losses, name):
    """Returns the balanced accuracy of each seed; of no seed if a loss has several L2 or none."""
    loss = name.removesuffix(BY_POSTERIOR)
    found = [runs for (of, _), runs in of_losses.items() if of == loss]
    decision = "recalls" if loss == name else "recalls_of_posterior"
    return balanced(found[0], decision) if len(found) == 1 else {}


def details(of_losses):
    """Returns every loss of a condition, best first."""
    bases = {name: values for name in BASES if (values := decided(of_losses, name))}
    columns = ["loss", "L2", "seeds", "logits", "posterior", "worst class", "train"]
    noisy = any("memorised" in run for runs in of_losses.values() for run in runs.values())
    columns += ["memorised"] if noisy else []
    columns += [f"logits - {base}" for base in bases]
    columns += [f"posterior - {base}" for base in bases if BY_POSTERIOR in base]
    rows = []
    for (loss, l2), runs in ranked(of_losses):
        logits, posterior = (balanced(runs, key) for key in ("recalls", "recalls_of_posterior"))
        row = [loss, f"{l2:g}", len(runs)]
        row += [stats.mean_and_error(logits.values()), stats.mean_and_error(posterior.values())]
        worst = [100 * min(known(run["recalls"])) for run in runs.values()]
        row.append(f"{statistics.mean(worst):.1f}")
        row.append(f"{statistics.mean(balanced(runs, 'train_recalls').values()):.1f}")
        if noisy:
            memorised = known([run["memorised"] for run in runs.values()])
            row.append(f"{100 * statistics.mean(memorised):.1f}" if memorised else "")
        row += ["" if loss == base else stats.difference(logits, bases[base]) for base in bases]
        row += [
            "" if loss + BY_POSTERIOR == base else stats.difference(posterior, bases[base])
            for base in bases
            if BY_POSTERIOR in base
        ]
        rows.append(row)
    return stats.table(columns, rows)


def balanced(runs, decision):
    """Returns the balanced accuracy in percent of each seed."""
    return {seed: 100 * statistics.mean(known(run[decision])) for seed, run in runs.items()}


def ranked(of_losses):
    """Returns the losses, best first by the argmax of their logits."""
    return sorted(
        of_losses.items(), key=lambda item: -statistics.mean(balanced(item[1], "recalls").values())
    )


def in_full(conditions):
    """Returns a section for each condition."""
    sections = []
    for condition, of_losses in conditions.items():
        seconds = [run["seconds"] for runs in of_losses.values() for run in runs.values()]
        recipe = ", ".join(f"{key} {value}" for key, value in json.loads(condition.recipe).items())
        text = (
            f"{recipe}; {len(seconds)} trainings of about {statistics.median(seconds):.0f} s each"
        )
        sections.append(f"## {condition.title}\n\n{text}\n\n{details(of_losses)}")
    return "\n\n".join(sections)
