"""Searches loss and q on long-tailed digits or CIFAR by cross-validation.

    python examples/tune_q.py --dataset digits --imbalance-ratio 20 --q 0 0.2

Cross-validates every distinct loss of the grid with whole trainings, prints their table, draws
balanced accuracy against q, and tests the best loss, refitted on all training data, beside the
logit-adjusted one. Resumes where it was stopped.
"""

import argparse
import json
import pathlib

import keras

from keras_balanced import BalancedAccuracy, ClassPrior, GLALoss, datasets, models, plots, tuning
from keras_balanced.surrogates import FAMILIES


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", choices=datasets.NAMES, default="digits")
    parser.add_argument("--imbalance-ratio", type=float, default=20)
    parser.add_argument("--losses", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--q", nargs="+", type=float, default=[0.0, 0.1, 0.2])
    parser.add_argument("--depth", type=int, choices=[8, 14, 20, 32], default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="results/tune_q")
    args = parser.parse_args(argv)
    try:
        datasets.check_imbalance(args.imbalance_ratio, "exponential")
        tuning.loss_grid([1, 1], args.losses, args.q)
        for name, least in (("epochs", 1), ("batch_size", 1), ("folds", 2)):
            if getattr(args, name) < least:
                value = getattr(args, name)
                raise ValueError(f"`{name}` must be at least {least}. Received: {value}")
        args.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def search(hypermodel, args, data):
    """Returns the table of the losses, best first, and the best model, refitted on all data."""
    tuner = tuning.CrossValidation(
        tuning.GridSearchOracle(hypermodel.objective),
        hypermodel,
        folds=args.folds,
        seed=args.seed,
        directory=args.output,
        project_name="search",
    )
    tuner.search(*data, epochs=args.epochs, batch_size=args.batch_size, verbose=0)
    table = []
    for trial in tuner.oracle.get_best_trials(len(hypermodel.grid)):
        chosen = hypermodel.loss(trial.hyperparameters)
        (point,) = (point for point, loss in hypermodel.grid.items() if loss is chosen)
        name, q, option = point
        error = trial.metrics.get_last_value("val_balanced_accuracy_standard_error")
        scores = {"balanced_accuracy": trial.score, "standard_error": error}
        table.append({"loss": name, "q": q, FAMILIES[name].option: option, **scores})
    return table, tuner.get_best_models()[0]


def logit_adjusted(build, args, prior, data):
    """Returns a model trained with the loss that has nothing to choose, the yardstick."""
    path = args.output / "logit_adjusted.keras"
    if not path.exists():
        keras.utils.set_random_seed(args.seed)
        model = build()
        model.compile("adam", loss=GLALoss(prior))
        model.fit(*data, epochs=args.epochs, batch_size=args.batch_size, verbose=0)
        model.save(path)
    return keras.saving.load_model(path)


def print_table(table):
    for row in table:
        option = FAMILIES[row["loss"]].option
        label = f"{row['loss']} q={row['q']:g} {option}={row[option]}"
        score, error = 100 * row["balanced_accuracy"], 100 * row["standard_error"]
        print(f"{label:<28}{score:>7.1f} +- {error:.1f}")


def draw(table, path):
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(7, 5), layout="constrained")
    plots.accuracy_against_q(table, ax)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv=None):
    args = parse_arguments(argv)
    # What is there belongs to one setting, except for the grid, which may grow.
    free = ("output", "losses", "q")
    settings = {k: str(v) for k, v in vars(args).items() if k not in free}
    settings_path = args.output / "settings.json"
    if settings_path.exists() and json.loads(settings_path.read_text()) != settings:
        raise SystemExit(f"{args.output} holds a search with other settings: give another --output")
    settings_path.write_text(json.dumps(settings))

    (x, y), (x_test, y_test) = datasets.load(args.dataset, args.imbalance_ratio, seed=args.seed)
    prior = ClassPrior(int(y_test.max()) + 1)
    prior.adapt(y)

    def build():
        return keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Rescaling(1 / 127.5, offset=-1),
                models.resnet(x.shape[1:], prior.num_classes, args.depth),
            ]
        )

    hypermodel = tuning.BalancedHyperModel(build, prior, args.losses, args.q, seed=args.seed)
    table, best = search(hypermodel, args, (x, y))
    print(f"Balanced accuracy in %, {args.folds}-fold cross-validation")
    print_table(table)
    print("\nTest set, balanced accuracy in %")
    yardstick = logit_adjusted(build, args, prior, (x, y))
    for name, model in (("logit-adjusted", yardstick), ("best of the search", best)):
        metric = BalancedAccuracy(prior.num_classes, decision=model.loss)
        metric.update_state(y_test, model.predict(x_test, verbose=0))
        print(f"{name:<28}{100 * float(metric.result()):>7.1f}")
    draw(table, args.output / "tune_q.png")
    print(f"\nPicture: {args.output / 'tune_q.png'}")


if __name__ == "__main__":
    main()
