"""Trains on long-tailed digits, calibrates, exports for TF Serving, and answers a request.

    python examples/serve.py

The request is answered by TensorFlow's C library, the loader inside TF Serving, in a process of
its own, and printed next to what the Keras model says. Then the class mix of production data is
estimated without labels, and the answers moved to it without another export.
"""

import argparse
import pathlib
import subprocess
import sys

import keras
import numpy as np

from keras_balanced import BalancedAccuracy, ClassPrior, Decision, GLALoss, datasets, plots, serving

C_LOADER = pathlib.Path(__file__).with_name("c_loader.py")
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
REQUEST = 5  # images


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imbalance-ratio", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the subset and the training")
    parser.add_argument("--output", type=pathlib.Path, default="results/served")
    args = parser.parse_args(argv)
    try:
        datasets.check_imbalance(args.imbalance_ratio, "exponential")
        if args.epochs < 1:
            raise ValueError(f"`epochs` must be at least 1. Received: {args.epochs}")
        args.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def train(data, validation_data, epochs, seed):
    keras.utils.set_random_seed(seed)
    prior = ClassPrior(10)
    prior.adapt(data[1])
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", loss=GLALoss(prior), metrics=[BalancedAccuracy(10)])
    model.fit(*data, validation_data=validation_data, batch_size=32, epochs=epochs, verbose=0)
    return model, prior


def ask(version, inputs, directory, signature="serving_default"):
    """Returns the answer of the C loader, which runs in a process without Python's TensorFlow."""
    request, answer = directory / "request.npz", directory / "answer.npz"
    np.savez(request, **inputs)
    command = [sys.executable, C_LOADER, version, "--signature", signature]
    subprocess.run([*command, "--inputs", request, "--outputs", answer], check=True)
    with np.load(answer) as outputs:
        return dict(outputs)


def main(argv=None):
    args = parse_arguments(argv)
    data, held_out, (x_test, y_test) = datasets.load(
        "digits", args.imbalance_ratio, seed=args.seed, validation_split=0.3
    )
    print(f"Training on {len(data[1])} images")
    model, prior = train(data, held_out, args.epochs, args.seed)

    calibration = serving.calibrate(model, model.loss, held_out)
    print(f"\nTemperature {calibration.temperature:.3f}, on {len(held_out[1])} held-out images")
    for name, before in calibration.before.items():
        print(f"{name:<24} before {before:.4f}   after {calibration.after[name]:.4f}")
    picture = args.output / "reliability.png"
    axes = plots.reliability_diagram(calibration.probabilities, calibration.labels, num_bins=5)
    axes.figure.savefig(picture, dpi=150)

    servable = args.output / "digits"
    decision = Decision(model.loss, temperature=calibration.temperature)
    version = serving.export(model, servable, decision, class_names=CLASS_NAMES)
    x = x_test[:: len(x_test) // REQUEST][:REQUEST].astype("float32")
    answer = ask(version, {"inputs": x}, args.output)
    logits = model.predict(x, verbose=0)
    print(f"\n{version}, by the C loader{'':<24}Keras model")
    for i in range(REQUEST):
        print(
            f"{answer['class_name'][i]:<6} probability {answer['probabilities'][i].max():.4f}, "
            f"logits {answer['logits'][i, :3].round(4)}...   {logits[i, :3].round(4)}..."
        )
    print(f"Largest difference of the logits: {np.abs(logits - answer['logits']).max():.2g}")

    # Production shows other classes than a balanced test set does, and nobody labels it.
    rng = np.random.default_rng(args.seed)
    true_mix = 0.7 ** np.arange(10) / np.sum(0.7 ** np.arange(10))
    production = rng.choice(len(y_test), 1000, p=(true_mix / np.bincount(y_test))[y_test])
    x = x_test[production].astype("float32")
    seen = {"inputs": x, "priors": prior.priors[None].astype("float32")}
    estimate = serving.estimate_priors(
        ask(version, seen, args.output, "with_priors")["probabilities"], prior
    )
    told = {"inputs": x, "priors": estimate[None].astype("float32")}
    moved = ask(version, told, args.output, "with_priors")["class_id"]
    stated = ask(version, {"inputs": x}, args.output)["class_id"]
    print(f"\nTrue mix of production   {true_mix.round(2)}")
    print(f"Estimated without labels {estimate.round(2)}")
    print(
        f"Accuracy there: {100 * np.mean(stated == y_test[production]):.1f}% under the mix of the "
        f"loss, {100 * np.mean(moved == y_test[production]):.1f}% with `with_priors`"
    )
    np.savez(args.output / "request.npz", inputs=x[:REQUEST])
    print(
        f"\nPicture: {picture}\nServe it, and ask it:\n"
        f'    docker run --rm -p 8500:8500 -p 8501:8501 -v "{servable.resolve()}:/models/digits" '
        "-e MODEL_NAME=digits tensorflow/serving\n"
        f"    python examples/client_rest.py --inputs {args.output / 'request.npz'}"
    )


if __name__ == "__main__":
    main()
