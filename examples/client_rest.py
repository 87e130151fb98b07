"""Asks a running TF Serving over REST, with `requests` alone.

python examples/client_rest.py --inputs results/served/request.npz
"""

import argparse
import pathlib

import numpy as np
import requests


def predict(url, model, signature="serving_default", **inputs):
    """Returns the outputs of a signature as a dict of arrays."""
    response = requests.post(
        f"{url}/v1/models/{model}:predict",
        json={
            "signature_name": signature,
            "inputs": {name: np.asarray(array).tolist() for name, array in inputs.items()},
        },
        timeout=30,
    )
    answer = response.json()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    outputs = answer["outputs"]
    if not isinstance(outputs, dict):  # A signature with one output, `raw`, leaves its name out.
        outputs = {"logits": outputs}
    return {name: np.array(values) for name, values in outputs.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8501")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--inputs", type=pathlib.Path, required=True, help=".npz of the inputs")
    args = parser.parse_args(argv)
    with np.load(args.inputs) as inputs:
        outputs = predict(args.url, args.model, args.signature, **inputs)
    for name, array in outputs.items():
        print(f"{name}: {array.tolist()}")


if __name__ == "__main__":
    main()
