"""Searches loss and q on long-tailed digits or CIFAR: fast first, then the best few in full.

    python examples/tune_q.py --dataset digits --imbalance-ratio 20

Trains one network, ranks every loss of the grid on its frozen features, then cross-validates the
best few with whole trainings, and tests the two models that come of it: the network with its last
layer refitted, and the one that the full search chose. Prints tables, draws balanced accuracy
against q, and resumes where it was stopped.
"""

import argparse
import json
import pathlib

import keras
import keras_tuner
import numpy as np

from keras_balanced import BalancedAccuracy, ClassPrior, GLALoss, datasets, models, plots, tuning


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", choices=datasets.NAMES, default="digits")
    parser.add_argument("--imbalance-ratio", type=float, default=20)
    parser.add_argument("--depth", type=int, choices=[8, 14, 20, 32], default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--best", type=int, default=3, help="how many losses to search in full")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default="results/tune_q")
    args = parser.parse_args(argv)
    try:
        datasets.check_imbalance(args.imbalance_ratio, "exponential")
        for name in ("epochs", "batch_size", "best"):
            if getattr(args, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {getattr(args, name)}")
        if args.folds < 2:
            raise ValueError(f"`folds` must be at least 2. Received: {args.folds}")
        args.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def fast(build, args, prior, train, validation):
    """Returns the table of the fast search and the model with its last layer refitted."""
    table_path, model_path = args.output / "fast.json", args.output / "fast.keras"
    if not table_path.exists():
        keras.utils.set_random_seed(args.seed)
        model = build()
        model.compile("adam", loss=GLALoss(prior), metrics=[BalancedAccuracy(prior.num_classes)])
        model.fit(*train, epochs=args.epochs, batch_size=args.batch_size, verbose=2)
        found = tuning.search_last_layer(
            model, train, validation, prior, refit=True, seed=args.seed
        )
        found.model.save(model_path)
        table_path.write_text(json.dumps(found.table))
    return json.loads(table_path.read_text()), keras.saving.load_model(model_path)


def full(build, args, prior, data, rows):
    """Cross-validates the losses of some rows; returns their table and the best model refitted."""
    # The few losses as one hyperparameter: any `build(hp)` that compiles is a hypermodel.
    grid = tuning.BalancedHyperModel(build, prior).grid
    losses = {label(row): grid[row["loss"], row["q"], row["tau"] or row["margins"]] for row in rows}

    def build_with(hp):
        keras.utils.set_random_seed(args.seed)
        model = build()
        loss = losses[hp.Choice("loss", list(losses))]
        # A metric with the loss decides by its posterior, as the model will be served.
        metric = BalancedAccuracy(prior.num_classes, loss=loss)
        model.compile("adam", loss=loss, metrics=[metric])
        return model

    objective = keras_tuner.Objective("val_balanced_accuracy", "max")
    tuner = tuning.CrossValidation(
        keras_tuner.oracles.GridSearchOracle(objective),
        build_with,
        folds=args.folds,
        seed=args.seed,
        directory=args.output,
        project_name="full",
    )
    tuner.search(*data, epochs=args.epochs, batch_size=args.batch_size, verbose=0)
    by_label = {label(row): row for row in rows}
    table = []
    for trial in tuner.oracle.get_best_trials(len(rows)):
        error = trial.metrics.get_last_value("val_balanced_accuracy_standard_error")
        scores = {"balanced_accuracy": trial.score, "standard_error": error}
        table.append({**by_label[trial.hyperparameters["loss"]], **scores})
    return table, tuner.get_best_models()[0]


def label(row):
    option = f"tau={row['tau']}" if row["tau"] else f"margins={row['margins']}"
    return f"{row['loss']} q={row['q']:g} {option}"


def print_table(title, table):
    print(f"\n{title}")
    for row in table:
        score, error = 100 * row["balanced_accuracy"], 100 * row["standard_error"]
        print(f"{label(row):<28}{score:>7.1f} +- {error:.1f}")


def draw(tables, path):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(12, 5), layout="constrained")
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        plots.accuracy_against_q(table, ax)
        ax.set_title(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv=None):
    args = parse_arguments(argv)
    # What is there belongs to one setting; another output is another search.
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("output", "best")}
    settings_path = args.output / "settings.json"
    if settings_path.exists() and json.loads(settings_path.read_text()) != settings:
        raise SystemExit(f"{args.output} holds a search with other settings: give another --output")
    settings_path.write_text(json.dumps(settings))

    train, validation, (x_test, y_test) = datasets.load(
        args.dataset, args.imbalance_ratio, seed=args.seed, validation_split=0.3
    )
    x, y = data = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
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

    ranking, refitted = fast(build, args, prior, train, validation)
    print_table("Fast search, cross-validated on one network's features", ranking[:10])
    chosen, trained = full(build, args, prior, data, ranking[: args.best])
    print_table(f"Full search, {args.folds}-fold cross-validation", chosen)

    print("\nTest set, balanced accuracy in %")
    for name, model in (("last layer refitted", refitted), ("full search", trained)):
        metric = BalancedAccuracy(prior.num_classes, loss=model.loss)
        metric.update_state(y_test, model.predict(x_test, verbose=0))
        print(f"{name:<28}{100 * float(metric.result()):>7.1f}")
    draw({"fast search": ranking, "full search": chosen}, args.output / "tune_q.png")
    print(f"\nPicture: {args.output / 'tune_q.png'}")


if __name__ == "__main__":
    main()
