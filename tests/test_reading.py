"""One reader: the same data give the same answer, whatever holds them and whoever reads them."""

import collections
import functools
import importlib.util
import itertools

import keras
import numpy as np
import oracle
import pandas as pd
import pytest
import scipy.sparse
from keras import ops

from keras_balanced import ClassPrior, GLALoss, callbacks, datasets, reading, serving

N, K, SIZE = 20, 3, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, K)).astype("float32")
Y = (X + RNG.gumbel(size=(N, K))).argmax(axis=-1)  # A model of these logits is right by chance.
W = RNG.integers(1, 5, N).astype("float32")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tf.data is TensorFlow's"
)


def batches(parts, index=slice(None)):
    """Returns tuples of slices of arrays, or of dicts of arrays."""
    slices = [slice(i, i + SIZE) for i in range(0, N, SIZE)][index]
    return [tuple(reading.choose(part, chosen) for part in parts) for chosen in slices]


class Batches(keras.utils.PyDataset):
    def __init__(self, parts, num_batches):
        super().__init__()
        self.parts, self.num = batches(parts), num_batches

    @property
    def num_batches(self):
        return self.num

    def __getitem__(self, i):
        return self.parts[i % len(self.parts)]


class Again:
    """Gives its batches anew each time, and does not say how many."""

    def __init__(self, parts):
        self.parts = batches(parts)

    def __iter__(self):
        return iter(self.parts)


class Indexed:
    """Has a length, and never raises an `IndexError`, as a data set of PyTorch may be."""

    def __init__(self, parts, length=4):
        self.parts, self.length = batches(parts), length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.parts[i % len(self.parts)]


class Pairs:
    """Examples by their index, for loaders."""

    def __init__(self, parts):
        self.parts = parts

    def __len__(self):
        return N

    def __getitem__(self, i):
        return tuple(reading.choose(part, i) for part in self.parts)


def tf_data(parts):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(SIZE)


def tf_generator(parts):
    """Of unknown length."""
    import tensorflow as tf

    dataset = tf_data(parts)
    return tf.data.Dataset.from_generator(
        lambda: iter(dataset), output_signature=dataset.element_spec
    )


def as_numpy_data(parts):
    return pytest.importorskip("tensorflow_datasets").as_numpy(tf_data(parts))


def torch_loader(parts):
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(Pairs(parts), batch_size=SIZE)


def torch_iterable(parts):
    """Of unknown length, with batches as they come."""
    data = pytest.importorskip("torch.utils.data")

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(batches(parts))

    return data.DataLoader(Stream(), batch_size=None)


def grain_map(parts):
    return pytest.importorskip("grain").MapDataset.source(Pairs(parts)).batch(SIZE)


def grain_iter(parts):
    source = pytest.importorskip("grain").MapDataset.source(Pairs(parts))
    return source.to_iter_dataset().batch(SIZE)


def grain_loader(parts, num_epochs=1):
    grain = pytest.importorskip("grain")
    return grain.DataLoader(
        data_source=Pairs(parts),
        sampler=grain.samplers.IndexSampler(N, num_epochs=num_epochs),
        operations=[grain.transforms.Batch(SIZE)],
    )


# Each holds arrays, or dicts of arrays, in batches of 6, 6, 6 and 2.
IN_BATCHES = {
    "list of tuples": batches,
    "list of lists": lambda parts: [list(batch) for batch in batches(parts)],
    "iterable": Again,
    "indexed": Indexed,
    "PyDataset": lambda parts: Batches(parts, 4),
    "tensors": lambda parts: [
        tuple(keras.tree.map_structure(ops.convert_to_tensor, part) for part in batch)
        for batch in batches(parts)
    ],
    "deque": lambda parts: collections.deque(batches(parts)),
    "tf.data": pytest.param(tf_data, marks=needs_tensorflow),
    "tf.data of a generator": pytest.param(tf_generator, marks=needs_tensorflow),
    "tfds.as_numpy": pytest.param(as_numpy_data, marks=needs_tensorflow),
    "torch DataLoader": torch_loader,
    "torch IterableDataset": torch_iterable,
    "grain MapDataset": grain_map,
    "grain IterDataset": grain_iter,
    "grain DataLoader": grain_loader,
    # Read once only.
    "generator": lambda parts: (batch for batch in batches(parts)),
    "iterator": lambda parts: map(tuple, batches(parts)),
}
ONCE = {"generator", "iterator"}


def cases(table):
    """Returns parameters of a table of functions, some of which have marks."""
    return [
        pytest.param(name, *value.values, marks=value.marks, id=name)
        if hasattr(value, "marks")
        else pytest.param(name, value, id=name)
        for name, value in table.items()
    ]


# How inputs come.
INPUTS = {
    "array": lambda: X,
    "dict": lambda: {"a": X, "b": np.zeros_like(X)},
}


def model_of(x):
    """Returns a model whose logits are the inputs."""
    return _model(isinstance(x, collections.abc.Mapping))


@functools.cache
def _model(of_dict):
    if of_dict:
        inputs = {name: keras.Input((K,), name=name) for name in ("a", "b")}
        model = keras.Model(inputs, keras.layers.Add()(list(inputs.values())))
    else:
        model = keras.Sequential([keras.Input((K,)), keras.layers.Rescaling(1.0)])
    model.compile("sgd", loss=GLALoss([1] * K))
    return model


def adapted(data, x, **kwargs):
    prior = ClassPrior(K)
    prior.adapt(data, **kwargs)
    return prior.counts


def updated(data, x, **kwargs):
    prior = ClassPrior(K)
    prior.update_state(data, **kwargs)
    return prior.counts


def calibrated(data, x, model=None, **kwargs):
    found = serving.calibrate(model or model_of(x), None, data, **kwargs)
    return [found.before["negative_log_likelihood"], *found.labels]


def reported(data, x, model=None, **kwargs):
    report, logs = callbacks.PerClassReport(data, **kwargs), {}
    report.set_model(model or model_of(x))
    report.on_train_begin()
    report.on_epoch_begin(0)
    report.on_epoch_end(0, logs)
    return [logs[f"val_recall_{k}"] for k in range(K)]


def expected_counts(x, y, w):
    return np.bincount(y, w, minlength=K)


def expected_calibration(x, y, w):
    log_p = oracle.log_softmax(X[: len(y)].astype("float64"))[np.arange(len(y)), y]
    means = [np.average(log_p[y == k], weights=w[y == k]) for k in range(K)]
    return [-np.mean(means), *y]


def expected_recalls(x, y, w):
    hits = X[: len(y)].argmax(axis=-1) == y
    return [np.average(hits[y == k], weights=w[y == k]) for k in range(K)]


READERS = {
    "adapt": (adapted, expected_counts),
    "update_state": (updated, expected_counts),
    "calibrate": (calibrated, expected_calibration),
    "PerClassReport": (reported, expected_recalls),
}


@pytest.mark.parametrize(  # Every pair of them.
    ("inputs", "weights", "steps"),
    [("array", None, None), ("array", W, 2), ("dict", W, None), ("dict", None, 2)],
    ids=["arrays", "arrays, weights, steps", "dicts, weights", "dicts, steps"],
)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "source"), cases(IN_BATCHES))
def test_every_source_by_every_reader(name, source, reader, inputs, weights, steps):
    if reader == "PerClassReport" and name in ONCE:
        pytest.skip("read once only")
    read, expected = READERS[reader]
    x = INPUTS[inputs]()
    parts = (x, Y) if weights is None else (x, Y, weights)
    ours = read(source(parts), x, **({} if steps is None else {"steps": steps}))
    chosen = slice(None if steps is None else steps * SIZE)
    w = np.ones(N) if weights is None else weights
    theirs = expected(reading.choose(x, chosen), Y[chosen], w[chosen])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


# Arrays in one piece.

ARRAYS = {
    "arrays": lambda x, y, w: (x, y, w),
    "lists": lambda x, y, w: (x.tolist(), y.tolist(), w.tolist()),
    "tensors": lambda x, y, w: tuple(map(ops.convert_to_tensor, (x, y, w))),
    "pandas": lambda x, y, w: (
        pd.DataFrame(x, index=range(N, 0, -1)),
        pd.Series(y, index=range(N, 0, -1)),
        pd.Series(w),
    ),
    "column": lambda x, y, w: (x, y[:, None], w[:, None]),
    "sparse": lambda x, y, w: (scipy.sparse.csr_matrix(x), y, w),
    "one-hot": lambda x, y, w: (x, np.eye(K)[y], w),
    "dict of one output": lambda x, y, w: (x, {"label": y}, {"label": w}),
    "mappings": lambda x, y, w: (
        x,
        collections.UserDict(label=y),
        collections.UserDict(label=w),
    ),
}


@pytest.mark.parametrize("inputs", [*INPUTS, "UserDict"])
@pytest.mark.parametrize("reader", ["calibrate", "PerClassReport"])
@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_by_every_reader(form, reader, inputs):
    read, expected = READERS[reader]
    data = ARRAYS[form](X, Y, W)
    if inputs != "array":
        x = {"a": data[0], "b": np.zeros_like(X)}
        data = (collections.UserDict(x) if inputs == "UserDict" else x, *data[1:])
    theirs = expected(X, Y, W)
    np.testing.assert_allclose(read(data, data[0]), theirs, rtol=1e-4)
    if form != "lists":  # Batches are arrays.
        ours = read(
            [tuple(reading.choose(reading.as_inputs(p), s) for p in data) for s in SLICES], data[0]
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


SLICES = [slice(i, i + SIZE) for i in range(0, N, SIZE)]


@pytest.mark.parametrize("size", [1, SIZE, N - 1, N, N + 1])
def test_slices_of_arrays_are_together_the_arrays(size):
    slices = list(reading.read((X, Y, W), batch_size=size))
    for parts, whole in zip(zip(*slices, strict=True), (X, Y, W), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert [len(batch.y) for batch in slices[:-1]] == [size] * (len(slices) - 1)


@pytest.mark.parametrize("read", [adapted, updated])
@pytest.mark.parametrize("form", ARRAYS)
def test_labels_in_arrays(form, read):
    if form == "one-hot" and read is updated:
        return  # Refused: see below.
    _, y, w = ARRAYS[form](X, Y, W)
    if isinstance(y, collections.abc.Mapping):
        with pytest.raises(ValueError, match=r"labels of one output.*\['label'\].*y\['label'\]"):
            read(y, None)
        return
    np.testing.assert_array_equal(read(y, None), np.bincount(Y, minlength=K))
    np.testing.assert_array_equal(read(y, None, sample_weight=w), np.bincount(Y, W))


class Foreign:
    """Is read as an array and in no other way, without a shape, as those of Arrow."""

    def __array__(self, dtype=None, copy=None):
        return Y.astype(dtype)


LABELS_ALONE = {
    "list of arrays": lambda: np.array_split(Y, 3),
    "list of lists": lambda: [part.tolist() for part in np.array_split(Y, 3)],
    "list": lambda: Y.tolist(),
    "tuple": lambda: tuple(Y.tolist()),
    "range of each": lambda: (int(y) for y in Y),
    "lists of NumPy's numbers": lambda: (list(part) for part in np.split(Y, N // 2)),
    "array of another library": Foreign,
    "tuples of one": lambda: [(part,) for part in np.array_split(Y, 3)],
    "dicts of one": lambda: [{"label": part} for part in np.array_split(Y, 3)],
    "frame": lambda: pd.DataFrame({"y": Y}),
    "dict x": lambda: [[{"ids": X[i]}, Y[i]] for i in SLICES],
}


@pytest.mark.parametrize("read", [adapted, updated])
@pytest.mark.parametrize("form", LABELS_ALONE)
def test_labels_alone(form, read):
    ours = read(LABELS_ALONE[form](), None)
    np.testing.assert_array_equal(ours, np.bincount(Y, minlength=K))


def test_weights_in_batches_are_not_dropped():
    """As `fit` does, `adapt` counts them; only `False` leaves them out."""
    weighted, plain = batches((X, Y, W)), batches((X, Y))
    np.testing.assert_array_equal(adapted(weighted, X, sample_weight=True), np.bincount(Y, W))
    np.testing.assert_array_equal(adapted(weighted, X, sample_weight=False), np.bincount(Y))
    np.testing.assert_array_equal(adapted(plain, X, sample_weight=False), np.bincount(Y))
    np.testing.assert_array_equal(adapted(Y, X, sample_weight=False), np.bincount(Y))
    for data in (plain, Y, [*weighted[:3], plain[3]]):
        with pytest.raises(ValueError, match="`sample_weight=True` needs batches"):
            adapted(data, X, sample_weight=True)
    # A batch without weights among others counts once.
    w = np.where(np.arange(N) < 3 * SIZE, W, 1.0)
    mixed = [*weighted[:3], plain[3]]
    for reader, (read, expected) in READERS.items():
        np.testing.assert_allclose(read(mixed, X), expected(X, Y, w), rtol=1e-4, err_msg=reader)


# Data without end.


def cycle_of_tf(parts):
    return tf_data(parts).repeat()


ENDLESS = {
    "cycle": lambda parts: itertools.cycle(batches(parts)),
    "repeat": lambda parts: itertools.repeat(batches(parts)[0]),
    "PyDataset": lambda parts: Batches(parts, None),
    "length of sys.maxsize": lambda parts: Indexed(parts, 2**63 - 1),
    "length beyond": lambda parts: Indexed(parts, 2**70),
    "tf.data": pytest.param(cycle_of_tf, marks=needs_tensorflow),
    "tf.data, prefetched": pytest.param(
        lambda parts: cycle_of_tf(parts).map(lambda *p: p).prefetch(1), marks=needs_tensorflow
    ),
    "tfds.as_numpy": pytest.param(
        lambda parts: pytest.importorskip("tensorflow_datasets").as_numpy(cycle_of_tf(parts)),
        marks=needs_tensorflow,
    ),
    "grain MapDataset": lambda parts: grain_map(parts).repeat(),
    "grain MapDataset in batches": lambda parts: (
        pytest.importorskip("grain").MapDataset.source(Pairs(parts)).repeat().batch(SIZE)
    ),
    "grain IterDataset": lambda parts: grain_map(parts).repeat().to_iter_dataset(),
    "grain IterDataset in batches": lambda parts: (
        pytest.importorskip("grain")
        .MapDataset.source(Pairs(parts))
        .repeat()
        .to_iter_dataset()
        .map(lambda e: e)
        .batch(SIZE)
    ),
    "grain RepeatIterDataset": lambda parts: pytest.importorskip(
        "grain"
    ).experimental.RepeatIterDataset(grain_iter(parts)),
    "grain DataLoader": lambda parts: grain_loader(parts, num_epochs=None),
}


def distributed(parts):
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return strategy.experimental_distribute_dataset(cycle_of_tf(parts))


ENDLESS["tf.distribute"] = pytest.param(distributed, marks=needs_tensorflow)


class NoLength(Batches):
    """Keras takes it for endless."""

    @property
    def num_batches(self):
        raise NotImplementedError


ENDLESS["PyDataset without length"] = lambda parts: NoLength(parts, None)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "source"), cases(ENDLESS))
def test_data_without_end_need_steps_everywhere(name, source, reader):
    read, expected = READERS[reader]
    parts = (X, Y, W)
    is_iterator = name in ("cycle", "repeat")
    message = "`steps` is needed for data without end.*never ends"
    with pytest.raises(ValueError, match=message):
        read(source(parts), X)
    if not (reader == "PerClassReport" and is_iterator) and name != "repeat":
        ours = read(source(parts), X, steps=2)
        theirs = expected(X[: 2 * SIZE], Y[: 2 * SIZE], W[: 2 * SIZE])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


FINITE = {
    "repeat": lambda: (itertools.repeat(Y, 3), 3),
    "list": lambda: ([Y], 1),
    "PyDataset": lambda: (Batches((X, Y), 7), 7),
    "grain repeated twice": lambda: (grain_map((X, Y)).repeat(2), 8),
    "grain slice of an endless one": lambda: (grain_map((X, Y)).repeat()[:5], 5),
    "grain limit of an endless one": lambda: (
        pytest.importorskip("grain").experimental.LimitIterDataset(
            grain_map((X, Y)).repeat().to_iter_dataset(), 5
        ),
        None,
    ),
    "generator": lambda: ((y for y in [Y]), None),
    "iterable": lambda: (Again((X, Y)), None),
    "grain IterDataset": lambda: (grain_iter((X, Y)), None),
    "grain DataLoader": lambda: (grain_loader((X, Y)), None),
    "torch": lambda: (torch_loader((X, Y)), 4),
    "torch stream": lambda: (torch_iterable((X, Y)), None),
    "tf.data": pytest.param(lambda: (tf_data((X, Y)).repeat(2), 8), marks=needs_tensorflow),
    "tf.data of a generator": pytest.param(
        lambda: (tf_generator((X, Y)), None), marks=needs_tensorflow
    ),
}


@pytest.mark.parametrize(("name", "make"), cases(FINITE))
def test_number_of_batches(name, make):
    data, expected = make()
    assert reading.number_of_batches(data) == expected


# The report reads its data again in each epoch.
@pytest.mark.parametrize("reader", [name for name in READERS if name != "PerClassReport"])
def test_steps_take_no_batch_more_than_they_read(reader):
    rest = iter(batches((X, Y, W)))
    READERS[reader][0](rest, X, steps=2)
    assert len(list(rest)) == 2


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("reader", READERS)
def test_steps_is_a_number_of_batches(reader, steps):
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1"):
        READERS[reader][0](batches((X, Y)), X, steps=steps)


@pytest.mark.parametrize("reader", READERS)
def test_steps_of_arrays_are_refused(reader):
    data = Y if reader in ("adapt", "update_state") else (X, Y)
    with pytest.raises(ValueError, match=r"`steps` needs batches\. Received: steps=2"):
        READERS[reader][0](data, X, steps=2)


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_says_how_far_it_is_where_no_end_is_known(reader, monkeypatch, capsys):
    """After 10 seconds, and when as long has passed again; by a clock of 4 seconds a tick."""
    monkeypatch.setattr(reading, "monotonic", itertools.count(0, 4).__next__)
    data = Again((X, Y))
    data.parts = data.parts * 3  # Read in 48 seconds.
    READERS[reader][0](data, X)
    said = [line for line in capsys.readouterr().out.splitlines() if "no end is known" in line]
    assert [line.split(": ")[1].split(",")[0] for line in said][:2] == [
        "3 batches read in 12 seconds",
        "6 batches read in 24 seconds",
    ]
    assert all("`steps=` limits how many are read" in line for line in said)


@pytest.mark.parametrize(("data", "steps"), [(batches((X, Y)) * 3, None), (Again((X, Y)), 4)])
def test_a_reader_is_silent_where_the_end_is_known(data, steps, monkeypatch, capsys):
    monkeypatch.setattr(reading, "monotonic", itertools.count(0, 40).__next__)
    adapted(data, X, steps=steps)
    assert capsys.readouterr().out == ""


@needs_tensorflow
def test_a_choice_of_examples_says_how_far_it_is(monkeypatch, capsys):
    """`long_tail` and `CrossValidation` need all examples: they speak of no `steps`."""
    import tensorflow as tf

    monkeypatch.setattr(reading, "monotonic", itertools.count(0, 4).__next__)
    examples = tf.data.Dataset.from_tensor_slices((X, np.arange(N) % 2)).filter(lambda x, y: True)
    datasets.long_tail(examples, imbalance_ratio=2)
    said = capsys.readouterr().out
    assert "`x`: 3 examples read in 12 seconds, and no end is known" in said
    assert "`.repeat()`" in said
    assert "steps" not in said


# What no reader takes.

REFUSED = {
    "array": (lambda: X, r"must be a tuple of arrays.*Received: an ndarray", None),
    "list of arrays": (lambda: [X, Y], "must be a tuple of arrays.*a list of arrays", None),
    "dict": (lambda: {"x": X}, "must be a tuple of arrays", "labels of one output"),
    "text": (lambda: "data.csv", "must be a tuple of arrays.*a str", "Received: a str"),
    "None": (lambda: None, "must be a tuple of arrays.*Received: None", "Received: None"),
    "set": (lambda: {0, 1}, "must be a tuple of arrays.*a set", "Received: a set"),
    "number": (lambda: 3, "must be a tuple of arrays.*an int", "Received: an int"),
    "four parts": (lambda: [(X, Y, W, W)], "tuple of 4", "tuple of 4"),
    "inputs alone": (lambda: [(X,)], r"must have labels, `\(x, y\)`", "must be integer classes"),
    "dicts": (
        lambda: [{"image": X, "label": Y}],
        r"must have labels.*\['image', 'label'\]",
        r"labels of one output.*\['image', 'label'\]",
    ),
    "several outputs": (
        lambda: [(X, {"a": Y, "b": Y})],
        r"labels of one output.*\['a', 'b'\].*pass those of one",
        r"labels of one output.*\['a', 'b'\].*pass those of one",
    ),
    "list of outputs": (
        lambda: [(X, [Y, Y])],
        "labels of one output.*labels in a list of 2",
        "labels of one output.*labels in a list of 2",
    ),
    "weights of several outputs": (
        lambda: [(X, Y, {"a": W, "b": W})],
        "weights of one output",
        "weights of one output",
    ),
    "no batch": (lambda: [], "must have examples|at least one batch", "at least one label"),
    "tuple": (lambda: (X, Y, W, W), "tuple of 4", "pass only its labels"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_alike(name, reader):
    make, of_models, of_labels = REFUSED[name]
    message = of_labels if reader in ("adapt", "update_state") else of_models
    if message is None or (reader == "update_state" and name == "no batch"):
        return
    with pytest.raises(ValueError, match=message) as caught:
        READERS[reader][0](make(), X)
    assert len(str(caught.value)) <= 600


@pytest.mark.parametrize("reader", ["calibrate", "PerClassReport"])
@pytest.mark.parametrize("bad", [(X, Y[:-1]), (X, Y, W[:-1]), (X[:-1], Y), (np.r_[X, X], Y)])
def test_arrays_of_unequal_lengths(bad, reader):
    with pytest.raises(ValueError, match=r"lengths|leading axes|must hold"):
        READERS[reader][0](bad, X)


@needs_tensorflow
@pytest.mark.parametrize("reader", ["calibrate", "PerClassReport"])
def test_ragged_labels_are_not_padded_with_class_0(reader):
    import tensorflow as tf

    ragged = tf.ragged.constant([[0, 1], [2]])
    data = tf.data.Dataset.from_tensor_slices((np.zeros((2, 2, K), "f"), ragged)).batch(2)
    inputs = keras.Input((None, K))
    model = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs))
    model.compile("sgd", loss=GLALoss([1] * K))
    with pytest.raises(ValueError, match=r"must be dense\. Received: a RaggedTensor"):
        READERS[reader][0](data, None, model=model)


def test_a_report_whose_data_are_used_up():
    class Once(Again):
        def __iter__(self):
            parts, self.parts = self.parts, []
            return iter(parts)

    report = callbacks.PerClassReport(Once((X, Y)))
    report.set_model(model_of(X))
    report.on_train_begin()
    report.on_epoch_begin(0)
    with pytest.raises(ValueError, match=r"read again each epoch\. Received: none the second"):
        report.on_epoch_end(0)
    with pytest.raises(ValueError, match=r"can be read each epoch\. Received: a generator"):
        callbacks.PerClassReport(batch for batch in batches((X, Y)))


def test_a_report_takes_its_output_of_labels_and_weights():
    y, w = {"a": Y, "b": Y[::-1]}, {"a": W, "b": W[::-1]}
    inputs = keras.Input((K,))
    outputs = {"a": keras.layers.Rescaling(1.0)(inputs), "b": keras.layers.Rescaling(2.0)(inputs)}
    model = keras.Model(inputs, outputs)
    for data in ((X, y, w), batches((X, y, w))):
        report, logs = callbacks.PerClassReport(data, output_name="a"), {}
        report.set_model(model)
        report.on_train_begin()
        report.on_epoch_begin(0)
        report.on_epoch_end(0, logs)
        recalls = [logs[f"val_recall_{k}"] for k in range(K)]
        np.testing.assert_allclose(recalls, expected_recalls(X, Y, W), rtol=1e-5)
    report = callbacks.PerClassReport((X, y, {"b": W}), output_name="a")
    report.set_model(model)
    with pytest.raises(ValueError, match=r"weights of one output, 'a'. Received: a dict of \['b'"):
        report.on_train_begin()


# Choosing single examples.


@pytest.mark.parametrize("make", [dict, collections.UserDict])
def test_long_tail_of_dicts_and_tables(make):
    y = np.repeat([0, 1, 2], 8)
    x = np.arange(24.0)
    inputs, labels = datasets.long_tail(make(a=x, b=[x, (-x).tolist()]), y, imbalance_ratio=4)
    expected, same = datasets.long_tail(x, y, imbalance_ratio=4)
    np.testing.assert_array_equal(labels, same)
    np.testing.assert_array_equal(inputs["a"], expected)
    np.testing.assert_array_equal(inputs["b"][1], -expected)
    frame, _ = datasets.long_tail(pd.DataFrame({"a": x, "b": "text"}), y, imbalance_ratio=4)
    assert frame["a"].tolist() == expected.tolist()
    assert frame["b"].tolist() == ["text"] * len(expected)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (lambda: Batches((X, Y), 4), None, "`tf.data.Dataset` of single examples.*a Batches"),
        (lambda: (b for b in batches((X, Y))), None, "of single examples.*a generator"),
        (lambda: X, None, "`y` must be labels, where `x` is an array. Received: y=None"),
        (lambda: X, Y[:-1], r"arrays of one length. Received: lengths \[19, 20\]"),
        (lambda: {"a": X, "b": X[1:]}, Y, r"arrays of one length. Received: lengths \[19, 20\]"),
        pytest.param(
            lambda: tf_data((X, Y)), Y, "`y` must be left out, since", marks=needs_tensorflow
        ),
        pytest.param(
            lambda: as_numpy_data((X, Y)), None, "of single examples", marks=needs_tensorflow
        ),
    ],
)
def test_what_a_choice_of_examples_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        datasets.long_tail(x(), y)
