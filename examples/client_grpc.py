"""Asks a running TF Serving over gRPC: pip install "keras-balanced[serving-client]".

python examples/client_grpc.py --inputs results/served/request.npz
"""

import argparse
import pathlib

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def predict(address, model, signature="serving_default", **inputs):
    """Returns the outputs of a signature as a dict of arrays."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, timeout=30)
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    return {
        name: array.astype(bytes).astype(str) if array.dtype == object else array
        for name, array in outputs.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--address", default="localhost:8500")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--inputs", type=pathlib.Path, required=True, help=".npz of the inputs")
    args = parser.parse_args(argv)
    with np.load(args.inputs) as inputs:
        outputs = predict(args.address, args.model, args.signature, **inputs)
    for name, array in outputs.items():
        print(f"{name}: {array.tolist()}")


if __name__ == "__main__":
    main()
