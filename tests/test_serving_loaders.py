"""Programs of others load what `serving.export` writes, and answer the same."""

import contextlib
import http.server
import importlib
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from concurrent import futures

import keras
import numpy as np
import pytest
from processes import free_addresses, run, wait_for

from benchmarks.questions import serving as benchmark
from keras_balanced import Decision, GCALoss, serving

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras does not export from the PyTorch backend"
)
NAMES = ["dog", "cat", "a lynx, which is a rare and shy cat"]
MIX = np.array([[1.0, 2.0, 3.0]], "float32")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(9, 6, 6, 1)).astype("float32")


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    path = tmp_path_factory.mktemp("served") / "animals"
    # Unequal margins: the posterior has a loop in it.
    decision = Decision(GCALoss([70, 20, 10]), temperature=1.5)
    return serving.export(model, path, decision, class_names=NAMES)


@pytest.fixture(scope="module")
def answers(version, x):
    """What Python's TensorFlow answers, by signature."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(version)).signatures
    feeds = {"serving_default": {}, "with_priors": {"priors": tf.constant(MIX)}, "raw": {}}
    return {
        name: {
            key: value.numpy().astype(str) if key == "class_name" else value.numpy()
            for key, value in signatures[name](inputs=tf.constant(x), **more).items()
        }
        for name, more in feeds.items()
    }


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        if values.dtype.kind == "f":  # Each program orders a sum its own way: the last bit.
            np.testing.assert_allclose(actual[name], values, rtol=1e-6, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(actual[name], values, err_msg=name)
        assert actual[name].dtype == values.dtype or name == "class_name"


@pytest.mark.slow
def test_c_loader(version, x, answers, tmp_path):
    """The script ends with an assertion that Python's TensorFlow was never imported."""
    for signature, expected in answers.items():
        more = {"priors": MIX} if signature == "with_priors" else {}
        np.savez(tmp_path / "inputs.npz", inputs=x, **more)
        arguments = ["--inputs", tmp_path / "inputs.npz", "--outputs", tmp_path / "outputs.npz"]
        run("examples/c_loader.py", version, "--signature", signature, *arguments)
        with np.load(tmp_path / "outputs.npz") as outputs:
            assert_same(dict(outputs), expected)


def test_c_loader_in_this_process(version, x, answers, tmp_path, capsys):
    c_loader = importlib.import_module("c_loader")
    model = c_loader.SavedModel(version)
    assert set(model.signatures) >= {"serving_default", "with_priors", "raw"}
    for batch in (1, 4):
        outputs = model.run("serving_default", inputs=x[:batch])
        np.testing.assert_allclose(
            outputs["probabilities"], answers["serving_default"]["probabilities"][:batch], rtol=1e-4
        )
    with pytest.raises(ValueError, match=r"Expected inputs \['inputs'\]. Received: \['image'\]"):
        model.run("raw", image=x)
    with pytest.raises(RuntimeError, match="must be a class mix"):
        model.run("with_priors", inputs=x, priors=-MIX)
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        c_loader.SavedModel(tmp_path)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="only TensorFlow has string tensors"
)
def test_c_loader_takes_strings(tmp_path):
    words = keras.Input((1,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["no", "se"], output_mode="one_hot")
    model = keras.Model(words, lookup(words))
    version = serving.export(
        model, tmp_path, GCALoss([70, 20, 10], margins=None), class_names=NAMES
    )
    served = importlib.import_module("c_loader").SavedModel(version)
    long = "a text longer than what fits into the tensor itself"
    answer = served.run("serving_default", inputs=np.array([["no"], ["se"], [long], [""]]))
    assert answer["class_name"].tolist() == [NAMES[1], NAMES[2], NAMES[0], NAMES[0]]


@pytest.mark.slow
def test_saved_model_cli(version, x, answers, tmp_path):
    np.save(tmp_path / "x.npy", x)
    # Its entry point, since the script need not be on the PATH.
    code = "from tensorflow.python.tools.saved_model_cli import main; main()"
    run(
        *("-c", code, "run", "--dir", version, "--tag_set", "serve"),
        *("--signature_def", "serving_default", "--outdir", tmp_path),
        *("--inputs", f"inputs={tmp_path / 'x.npy'}"),
    )
    outputs = {file.stem: np.load(file, allow_pickle=True) for file in tmp_path.glob("*.npy")}
    del outputs["x"]
    outputs["class_name"] = outputs["class_name"].astype(bytes).astype(str)
    assert_same(outputs, answers["serving_default"])


@contextlib.contextmanager
def model_server(version):
    """The real server, REST and gRPC."""
    binary = shutil.which("tensorflow_model_server")
    if binary is None:
        pytest.skip("tensorflow_model_server is not on the PATH")
    rest, grpc = (address.split(":")[1] for address in free_addresses(2))
    arguments = [f"--rest_api_port={rest}", f"--port={grpc}", "--model_name=animals"]
    server = subprocess.Popen([binary, *arguments, f"--model_base_path={version.parent}"])

    def available():
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            status = urllib.request.urlopen(f"http://localhost:{rest}/v1/models/animals")
            return "AVAILABLE" in status.read().decode()

    try:
        wait_for(available, server)
        yield rest, grpc
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def stand_in(version):
    """Speaks the server's two protocols, with the C loader behind: what the clients need."""
    model = importlib.import_module("c_loader").SavedModel(version)

    class Rest(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/animals:predict"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            inputs = {k: np.array(v, "float32") for k, v in request["inputs"].items()}
            try:
                outputs = model.run(request["signature_name"], **inputs)
                outputs = {name: array.tolist() for name, array in outputs.items()}
                outputs = outputs if len(outputs) > 1 else next(iter(outputs.values()))
                code, answer = 200, {"outputs": outputs}
            except RuntimeError as error:
                code, answer = 400, {"error": str(error)}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    rest = http.server.ThreadingHTTPServer(("localhost", 0), Rest)
    thread = threading.Thread(target=rest.serve_forever)
    thread.start()
    stop, port = _stand_in_grpc(model)
    try:
        yield rest.server_port, port
    finally:
        stop()
        rest.shutdown()
        thread.join()
        rest.server_close()


def _stand_in_grpc(model):
    if importlib.util.find_spec("tensorflow_serving") is None:
        return lambda: None, None
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            assert request.model_spec.name == "animals"
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            try:
                outputs = model.run(request.model_spec.signature_name, **inputs)
            except RuntimeError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            for name, array in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    return lambda: server.stop(None).wait(), port


@pytest.mark.parametrize("server", [model_server, stand_in])
def test_rest_client(server, version, x, answers, tmp_path, capsys):
    pytest.importorskip("requests", reason="requests is in the extra `serving-client`")
    client = importlib.import_module("client_rest")
    with server(version) as (port, _):
        url = f"http://localhost:{port}"
        for signature, expected in answers.items():
            more = {"priors": MIX} if signature == "with_priors" else {}
            outputs = client.predict(url, "animals", signature, inputs=x, **more)
            assert set(outputs) == set(expected)
            for name in set(outputs) - {"class_name"}:  # Decimal digits on the way.
                np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-6)
        assert outputs.keys() == {"logits"}
        with pytest.raises(RuntimeError, match="must be a class mix"):
            client.predict(url, "animals", "with_priors", inputs=x, priors=-MIX)
        np.savez(tmp_path / "inputs.npz", inputs=x[:2])
        client.main(["--url", url, "--model", "animals", "--inputs", str(tmp_path / "inputs.npz")])
    names = answers["serving_default"]["class_name"][:2].tolist()
    assert f"class_name: {names}" in capsys.readouterr().out


@pytest.mark.parametrize("server", [model_server, stand_in])
def test_grpc_client(server, version, x, answers, tmp_path, capsys):
    pytest.importorskip("tensorflow_serving", reason="its stubs are in the extra `serving-client`")
    client = importlib.import_module("client_grpc")
    with server(version) as (_, port):
        address = f"localhost:{port}"
        for signature, expected in answers.items():
            more = {"priors": MIX} if signature == "with_priors" else {}
            outputs = client.predict(address, "animals", signature, inputs=x, **more)
            assert_same(outputs, expected)
        np.savez(tmp_path / "inputs.npz", inputs=x[:2])
        client.main(
            ["--address", address, "--model", "animals", "--inputs", str(tmp_path / "inputs.npz")]
        )
    names = answers["serving_default"]["class_name"][:2].tolist()
    assert f"class_name: {names}" in capsys.readouterr().out


@pytest.mark.slow
def test_example_serves_digits(tmp_path, capfd):
    pytest.importorskip("matplotlib").use("Agg")
    serve = importlib.import_module("serve")
    serve.main(["--epochs", "3", "--output", str(tmp_path)])
    printed = capfd.readouterr().out
    (difference,) = re.findall(r"Largest difference of the logits: (\S+)", printed)
    assert float(difference) < 1e-4
    assert "docker run --rm -p 8500:8500 -p 8501:8501" in printed
    assert [child.name for child in (tmp_path / "digits").iterdir()] == ["1"]
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        serve.main(["--epochs", "0", "--output", str(tmp_path)])
    assert "`epochs` must be at least 1" in capfd.readouterr().err


@pytest.mark.slow
def test_benchmark_runs():
    found = benchmark.measure(batch=2, rounds=2)
    assert next(iter(found)) == "bare export"
    assert len(found) == 5
    assert all(of["milliseconds"] > 0 for of in found.values())
