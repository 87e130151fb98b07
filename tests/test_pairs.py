"""Every pair of what labels, weights and masks can be: right, or refused by the name of its cause.

A case has two settings (some drawn at random more) that are not the first of their axis. What comes
out is held to a float64 oracle, written from the formulas.
"""

import itertools
import types
import zlib

import keras
import numpy as np
import oracle
import pytest
from keras import ops

from keras_balanced import (
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassCalibrationError,
    ClassPrior,
    Decision,
    GCALoss,
    GLALoss,
    backends,
    callbacks,
    gca_loss,
    gla_loss,
    serving,
    tuning,
)

BACKEND = keras.backend.backend()
LABELS, BINS = {"labels": [0.2, 0.5, 0.1], "one_label": [0.2]}, 15
Q = {"gla": 0.3, "gca": 0.1}
# Each form of labels: the axes of its positions after the batch ("K" is as many as classes), and
# whether labels and predictions end in an axis of 1.
INTEGERS = {
    "ids": ((), False, False),
    "column": ((), True, False),
    "steps": ((3,), False, False),
    "square": (("K",), False, False),
    "pixels": ((2, 3), False, False),
}
VECTORS = {
    "one_hot": ((), False, False),
    "soft": ((), False, False),
    "one_hot_steps": ((3,), False, False),
}
BINARY = {
    "binary": ((), False, False),
    "binary_output": ((), False, True),
    "binary_column": ((), True, True),
    "binary_steps": ((3,), False, False),
    "binary_steps_output": ((3,), False, True),
    "binary_pixels": ((2, 3), True, True),
    "labels": ((3,), False, False),
    "one_label": ((1,), False, False),
}
FORMS = {**INTEGERS, **VECTORS, **BINARY}
AXES = {
    "form": list(FORMS),
    "dtype": ["int64", "uint8", "uint32", "float32", "bool"],
    "classes": [4, 2],
    "ignored": [None, -1, 255, 0, 1, (1, 255)],
    "counted": [None, "weight", "row weight", "weight 0", "weight below 0", "mask", "mask, weight"],
    "batch": [8, 1, 0],
    "absent": [None, "first", "middle", "last"],
    "smoothing": [0.0, 0.1],
    "loss": ["gla", "gca"],
}
OF_LABELS = ["form", "dtype", "classes", "ignored", "counted", "batch"]


def ids_of(ignored):
    return [] if ignored is None else np.atleast_1d(ignored).tolist()


def exists(case):
    """Whether there is such a case: some settings have no meaning together."""
    if case.form in BINARY and (case.absent or case.classes > 2):
        return False
    if case.form == "soft" and case.dtype != "float32":
        return False
    if case.dtype == "bool" and (case.ignored or (case.form in INTEGERS and case.classes > 2)):
        return False
    return not (case.absent == "middle" and case.classes == 2)


def cases(axes, rows=0):
    """Every pair of settings, the others as they are first; and `rows` drawn at random."""
    first = {name: values[0] for name, values in AXES.items()}
    found = [first]
    for a, b in itertools.combinations(axes, 2):
        found += [{**first, a: u, b: v} for u, v in itertools.product(AXES[a], AXES[b])]
    rng = np.random.default_rng(0)
    for _ in range(rows):
        drawn = {name: AXES[name][rng.integers(len(AXES[name]))] for name in axes}
        found.append({**first, **drawn})
    kept = {}
    for settings in found:
        if settings["form"] in BINARY:
            settings = {**settings, "classes": 2}
        if settings["form"] == "soft":
            settings = {**settings, "dtype": "float32"}
        forced = "classes" if settings["form"] in BINARY else "dtype"
        forced = forced if settings["form"] in (*BINARY, "soft") else None
        changed = [n for n, value in settings.items() if value != first[n] and n != forced]
        name = " + ".join(f"{n} {settings[n]}" for n in changed) or "first"
        case = types.SimpleNamespace(**settings, id=name)
        if exists(case):
            kept[case.id] = case
    return list(kept.values())


def parametrized(subject, found):
    """The cases as arguments of a test; those that are known to fail must fail."""
    if BACKEND != "tensorflow":
        found = [case for case in found if case.form in INTEGERS]
    parameters = []
    for case in found:
        reasons = [why for what, fails, why in EXPECTED if subject in what and fails(case)]
        marks = [pytest.mark.xfail(strict=True, reason=reasons[0])] if reasons else []
        parameters.append(pytest.param(case, id=case.id, marks=marks))
    return pytest.mark.parametrize("case", parameters)


# Subjects, which cases, why: what is known to be wrong, and is to be mended.
EXPECTED: list[tuple] = []


def example(case):
    """The data of a case, and what the oracle needs: targets `(..., K)` and who counts how much."""
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    axes, y_column, z_column = FORMS[case.form]
    shape = (case.batch, *(case.classes if size == "K" else size for size in axes))
    occurs = np.ones(case.classes, bool)
    if case.absent:
        occurs[{"first": 0, "middle": 1, "last": -1}[case.absent]] = False
    binary = case.form in BINARY
    y = rng.choice(np.flatnonzero(occurs), shape)
    z = rng.standard_normal(shape if binary else (*shape, case.classes)).astype("float32")
    ignored = ids_of(case.ignored)
    fits = [i for i in ignored if i >= 0 or not case.dtype.startswith("u")]
    if fits and case.form not in VECTORS:
        y = np.where(rng.random(shape) < 0.3, rng.choice(fits, shape), y)
    counts = ~np.isin(y, ignored)
    target = np.eye(case.classes)[np.clip(y, 0, case.classes - 1)]
    if case.form == "soft":
        target = occurs * rng.dirichlet(np.ones(case.classes), shape)
    # So that predictions are right more often than by chance.
    z = z + (2 * target[..., 1] - 1 if binary else target).astype("float32")
    weights, mask, w = None, None, np.ones(shape)
    counted = case.counted or ""
    if "weight" in counted:
        weights = rng.standard_normal(shape[:1] if counted == "row weight" else shape)
        weights = weights if counted == "weight below 0" else np.abs(weights)
        if counted == "weight 0":
            weights = weights * (rng.random(shape) < 0.5)
        weights = weights.astype("float32")
        w = np.broadcast_to(weights.reshape(weights.shape + (1,) * (w.ndim - weights.ndim)), shape)
    if "mask" in counted:
        mask = rng.random(shape[:1] if case.form in LABELS else shape) < 0.5
        counts = counts & mask.reshape(mask.shape + (1,) * (counts.ndim - mask.ndim))
    # What does not count may be anything.
    known = ~np.isin(y, ignored)
    junk = known & ((w == 0) | ~counts)
    if case.dtype != "bool":
        y = np.where(junk, 99, y)
    if case.form in VECTORS:
        y = np.where(junk[..., None], np.nan if case.form == "soft" else 9, target)
    y = y.astype(case.dtype)
    return types.SimpleNamespace(
        y=y[..., None] if y_column else y,
        z=z[..., None] if z_column else z,
        weights=weights,
        mask=mask,
        target=target,
        w=w * counts,
        number=counts.sum(),
        priors=np.where(occurs, [[6, 2], [6, 3, 1, 2]][case.classes == 4], 0),
        target_priors=occurs / occurs.sum(),
        masked=lambda z: z if mask is None else backends.set_mask(z, ops.convert_to_tensor(mask)),
    )


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def holds(check, causes):
    """Runs a check, which may be refused for `causes`: pairs of a text and whether it applies."""
    try:
        check()
    except ValueError as error:
        named = any(applies and text in str(error) for text, applies in causes.items())
        if not named or len(str(error)) > 600:
            raise
    else:
        assert not causes.get(ALWAYS), "must be refused"


# Class ids to ignore and targets that are no ids: to drop the option would be silently wrong.
ALWAYS = "`ignore_class` needs"


def causes(case):
    return {
        ALWAYS: case.form in VECTORS and case.ignored is not None,
        "at least 2 classes": bool(case.absent) and case.classes == 2,
    }


# ------------------------------------------------------------------------------------- losses


def losses_of_classes(z, case, priors):
    """The loss `(..., K)` of each class as the true one, and what smoothing mixes in `(K,)`."""
    p, q = oracle.normalize(priors), Q[case.loss]
    occurs = p > 0
    t = oracle.normalize(occurs)
    ratio = np.divide(t, p, where=occurs, out=np.ones(len(p)))
    shift, rho, w = np.zeros(len(p)), np.ones(len(p)), np.ones(len(p))
    if case.loss == "gla":
        shift = -np.log(ratio) / (1 - q)
        shift = np.where(occurs, shift, shift[occurs].max())
    else:
        rho = np.cbrt(ratio * t)
        rho, w = np.where(occurs, rho / rho[occurs].mean(), 1.0), ratio
    log_s = [oracle.log_softmax(z / rho[k] + shift)[..., k] for k in range(len(p))]
    losses = np.stack([w[k] * oracle.psi(log_s[k], q) for k in range(len(p))], axis=-1)
    return losses, oracle.normalize(occurs / ratio)


def expected_losses(z, case, data):
    """The weighted loss `(...)` of each position, 0 where it does not count."""
    z = np.asarray(z, "float64")
    if case.form not in BINARY:
        per_class, mass = losses_of_classes(z, case, data.priors)
        columns = [(per_class, mass, data.target)]
    else:
        z = np.stack([np.zeros(data.w.shape), z.reshape(data.w.shape)], axis=-1)
        if case.form in LABELS:
            rates = LABELS[case.form]
            parts = [(z[:, i], [1 - r, r], data.target[:, i]) for i, r in enumerate(rates)]
        else:
            parts = [(z, data.priors, data.target)]
        columns = [(*losses_of_classes(part, case, p), target) for part, p, target in parts]
    total = []
    for per_class, mass, target in columns:
        total_mass = target.sum(axis=-1, keepdims=True) * mass
        smoothed = (1 - case.smoothing) * target + case.smoothing * total_mass
        total.append((smoothed * per_class).sum(axis=-1))
    return data.w * (np.stack(total, axis=-1) if case.form in LABELS else total[0])


def expected_gradient(z, case, data, step=1e-5):
    if case.form in BINARY:
        change = [expected_losses(z + h, case, data) for h in (step, -step)]
        return ((change[0] - change[1]) / (2 * step)).reshape(z.shape)
    columns = []
    for h in step * np.eye(case.classes):
        change = expected_losses(z + h, case, data) - expected_losses(z - h, case, data)
        columns.append(change / (2 * step))
    return np.stack(columns, axis=-1)


def make_loss(case, data, **kwargs):
    kwargs.update(q=Q[case.loss], ignore_class=case.ignored, label_smoothing=case.smoothing)
    if case.form in BINARY:
        rates = LABELS.get(case.form, data.priors[1] / data.priors.sum())
        return (BinaryGLALoss if case.loss == "gla" else BinaryGCALoss)(rates, **kwargs)
    kwargs["target_priors"] = data.target_priors
    return (GLALoss if case.loss == "gla" else GCALoss)(data.priors, **kwargs)


def check_loss(case, gradient, call=lambda function: function):
    data = example(case)
    each, mean = (make_loss(case, data, reduction=r) for r in (None, "sum_over_batch_size"))
    values = numpy(call(lambda z: each(data.y, data.masked(z), data.weights))(data.z))
    z = np.asarray(data.z, "float64").reshape(data.target.shape if case.form not in BINARY else -1)
    z = z.reshape(data.z.shape)
    expected = expected_losses(z, case, data)
    np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=2e-5, atol=1e-6)
    number = max(data.number, 1)
    slope = gradient(call(lambda z: mean(data.y, data.masked(z), data.weights)), data.z)
    wanted = expected_gradient(z, case, data) / number
    np.testing.assert_allclose(slope, wanted, rtol=2e-4, atol=1e-6)


LOSSES = cases(AXES, rows=80)


@parametrized("loss", LOSSES)
def test_losses(case, gradient):
    holds(lambda: check_loss(case, gradient), causes(case))


def is_function(case):
    return case.form not in BINARY and not case.counted


@parametrized("function", [case for case in LOSSES if is_function(case)])
def test_functions(case):
    data = example(case)
    kwargs = {"q": Q[case.loss], "ignore_class": case.ignored, "label_smoothing": case.smoothing}
    function = gla_loss if case.loss == "gla" else gca_loss

    def check():
        values = function(data.y, data.z, data.priors, target_priors=data.target_priors, **kwargs)
        expected = expected_losses(data.z, case, data)
        np.testing.assert_allclose(numpy(values), expected, rtol=2e-5, atol=1e-6)

    holds(check, causes(case))


COMPILED = {
    "tensorflow": {"graph": {}, "xla": {"jit_compile": True}},
    "jax": {"xla": {}},
}.get(BACKEND, {})


def is_compiled(case):
    """Some ten: those with a class that stands where a placeholder would, and others."""
    placeholder = case.absent == "first" and case.counted in ("weight 0", "mask")
    drawn = zlib.crc32(case.id.encode()) % 60 == 0
    return drawn or (placeholder and case.id.count("+") == 1)


@pytest.mark.skipif(not COMPILED, reason="Keras runs PyTorch eagerly")
@pytest.mark.parametrize("how", COMPILED)
@parametrized("compiled", [case for case in LOSSES if is_compiled(case)])
def test_compiled_losses(case, how, gradient):
    def call(function):
        if BACKEND == "jax":
            import jax

            return jax.jit(function)
        import tensorflow as tf

        compiled = tf.function(function, autograph=False, **COMPILED[how])
        return lambda z: compiled(tf.convert_to_tensor(z))

    holds(lambda: check_loss(case, gradient, call), causes(case))


# ------------------------------------------------------------------------------------ metrics


def expected_recalls(case, data):
    """The balanced accuracy: over labels the mean of that of each."""
    z = data.z.reshape(data.target.shape[:-1] if case.form in BINARY else data.target.shape)
    predicted = (z > 0).astype(int) if case.form in BINARY else z.argmax(-1)
    total = data.w[..., None] * data.target
    right = total * (predicted[..., None] == np.arange(case.classes))
    axes = tuple(range(total.ndim - 1 - (case.form in LABELS)))
    total, right = total.sum(axis=axes), right.sum(axis=axes)
    if not total.any():
        return 0.0
    recalls = np.ma.masked_array(right, total == 0) / total
    return float(np.ma.mean(np.ma.mean(recalls, axis=-1)))


def expected_calibration(case, data):
    target = data.target
    w = np.broadcast_to(data.w[..., None], target.shape)
    if case.form not in BINARY:
        probabilities = np.exp(oracle.log_softmax(data.z.astype("float64")))
    else:
        probabilities = 1 / (1 + np.exp(-data.z.astype("float64").reshape(data.w.shape)))
        target, w = data.target[..., 1], data.w
        if case.form not in LABELS:
            probabilities, target, w = (x[..., None] for x in (probabilities, target, w))
    number = target.shape[-1]
    gaps = np.zeros((number, BINS))
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    np.add.at(gaps, (np.arange(number), bins), w * (probabilities - target))
    return np.abs(gaps).sum() / w.sum() if w.sum() else 0.0


METRICS = cases(OF_LABELS, rows=40)


@parametrized("metric", METRICS)
def test_balanced_accuracy(case):
    data = example(case)

    def check():
        if case.form in BINARY:
            labels = len(LABELS[case.form]) if case.form in LABELS else None
            metric = BinaryBalancedAccuracy(ignore_class=case.ignored, num_labels=labels)
        else:
            metric = BalancedAccuracy(case.classes, ignore_class=case.ignored)
        metric.update_state(data.y, data.masked(ops.convert_to_tensor(data.z)), data.weights)
        expected = expected_recalls(case, data)
        assert float(metric.result()) == pytest.approx(expected, rel=1e-4, abs=1e-6)

    holds(check, causes(case))


# What reads labels, weights and masks is the same: its pairs are tried above.
@parametrized("calibration error", cases(["form", "ignored", "counted"], rows=40))
def test_calibration_error(case):
    data = example(case)

    def check():
        labels = len(LABELS.get(case.form, "1"))
        number = labels if case.form in BINARY else case.classes
        metric = ClassCalibrationError(number, num_bins=BINS, ignore_class=case.ignored)
        z = ops.convert_to_tensor(data.z)
        p = ops.sigmoid(z) if case.form in BINARY else ops.softmax(z) if case.batch else z
        metric.update_state(data.y, data.masked(p), data.weights)
        expected = expected_calibration(case, data)
        assert float(metric.result()) == pytest.approx(expected, rel=1e-4, abs=1e-6)

    # Without a loss nothing tells labels from one-hot targets, nor -1 from an unknown label.
    inside = any(0 <= i < case.classes for i in ids_of(case.ignored))
    found = {
        ALWAYS: case.form in (*VECTORS, "labels") and inside,
        "`ignore_class`": case.form in VECTORS,
        "`sample_weight`": case.form in LABELS and "weight" in (case.counted or ""),
    }
    holds(check, found)


# -------------------------------------------------------------------------------------- adapt


def is_adapted(case):
    return "mask" not in (case.counted or "")


@parametrized("adapt", [case for case in METRICS if is_adapted(case)])
def test_adapt(case):
    data = example(case)
    is_square = case.form not in VECTORS and data.y.shape[-1:] == (case.classes,)
    # `ignore_class` says that integers are ids, here sequences of two.
    is_pair = case.form == "one_hot" and case.classes == 2 and case.ignored is not None
    found = {
        **causes(case),
        ALWAYS: causes(case)[ALWAYS] and not is_pair,
        "at least one label": not (data.w > 0).any(),
        "`sample_weight` must be finite and not negative": case.counted == "weight below 0",
        "Flatten them": is_square,
    }

    def check():
        multi_label = case.form in LABELS
        number = len(LABELS[case.form]) if multi_label else case.classes
        prior = ClassPrior(number, multi_label=multi_label, ignore_class=case.ignored)
        prior.adapt(data.y, sample_weight=data.weights)
        weights, target = data.w, data.target
        if is_pair:
            target = np.eye(2)[data.y] * ~np.isin(data.y, ids_of(case.ignored))[..., None]
            weights = np.ones((len(target), 1))
            if data.weights is not None:
                weights = weights * data.weights[:, None]
        counts = weights[..., None] * target
        axes = tuple(range(counts.ndim - 1 - multi_label))
        np.testing.assert_allclose(prior.counts, counts.sum(axis=axes), rtol=1e-6)

    holds(check, found)


# -------------------------------------------------- reports, calibration, export, searches

slow = pytest.mark.slow
WIDE = ["form", "dtype", "ignored", "counted", "absent", "loss"]
WHOLE = [case for case in cases(WIDE, rows=40) if is_adapted(case)]
EACH_FORM = [case for case in WHOLE if case.id == f"form {case.form}"]


def some(count, of=WHOLE):
    """Each form of labels by itself, and some cases drawn at random."""
    rng = np.random.default_rng(1)
    return [*EACH_FORM, *(of[i] for i in rng.choice(len(of), count, replace=False))]


def identity(z, trained=False):
    layer = keras.layers.Activation("linear")
    if trained:
        layer = keras.layers.Dense(z.shape[-1], kernel_initializer="identity")
    return keras.Sequential([keras.Input(z.shape[1:]), layer])


@slow
@parametrized("report", some(10))
def test_report(case):
    data = example(case)

    def check():
        model = identity(data.z)
        model.compile("sgd", make_loss(case, data))
        arrays = (data.z, data.y) if data.weights is None else (data.z, data.y, data.weights)
        report = callbacks.PerClassReport(arrays, ignore_class=case.ignored)
        report.set_model(model)
        report.on_train_begin()
        report.on_epoch_begin(0)
        logs = {}
        report.on_epoch_end(0, logs)
        scores = [logs[name] for name in logs if not name.startswith("val_worst")]
        assert np.nanmean(scores) == pytest.approx(expected_recalls(case, data), rel=1e-4)

    holds(check, causes(case))


def log_posterior(z, case, priors):
    """Under the target mix, `(N, K)`, of the classes that occur."""
    p = oracle.normalize(priors)
    occurs = np.flatnonzero(p)
    p, z = p[occurs], z[:, occurs]
    t = np.full(len(p), 1 / len(p))
    if case.loss == "gla":
        return oracle.log_softmax((1 - Q["gla"]) * z)
    rho = np.cbrt(t**2 / p)
    return oracle.log_posterior(z, p, rho / rho.mean(), t / p, t, Q["gca"])


def expected_log_posterior(case, data):
    """Of each position in a row; of labels that of 1."""
    z = data.z.astype("float64").reshape(-1, *data.target.shape[data.w.ndim :])
    if case.form not in BINARY:
        return log_posterior(z, case, data.priors)
    z = np.stack([np.zeros(data.z.shape), data.z], axis=-1)
    if case.form != "labels":  # A vector of one rate is that of one logit.
        return log_posterior(z.reshape(-1, 2), case, data.priors)
    rates = enumerate(LABELS[case.form])
    return np.stack([log_posterior(z[:, i], case, [1 - r, r])[:, 1] for i, r in rates], axis=-1)


@slow
@parametrized("calibrate", some(10))
def test_calibrate(case):
    case = types.SimpleNamespace(**{**vars(case), "batch": 60})
    data = example(case)
    found = {
        **causes(case),
        "one class per example": case.form == "labels",
        "soft targets": case.form == "soft",
        "weights": case.counted == "weight below 0",
    }

    def check():
        weights = () if data.weights is None else (data.weights,)
        arrays = (data.z, data.y, *weights)
        calibration = serving.calibrate(identity(data.z), make_loss(case, data), arrays)
        target, w = data.target.reshape(-1, case.classes), data.w.ravel()
        target = target[:, data.priors > 0] if case.form not in BINARY else target
        mix = (w[:, None] * target).sum(axis=0) / w.sum()
        each = -(target * expected_log_posterior(case, data) / np.where(mix > 0, mix, 1)).sum(-1)
        expected = (w * each).sum() / (w * (target / np.where(mix > 0, mix, 1)).sum(-1)).sum()
        ours = calibration.before["negative_log_likelihood"]
        assert ours == pytest.approx(expected, rel=1e-4)

    holds(check, found)


@slow
@pytest.mark.skipif(BACKEND == "torch", reason="Keras does not export from PyTorch")
@parametrized("export", some(6, [c for c in WHOLE if not (c.ignored or c.counted)]))
def test_export(case, tmp_path):
    import tensorflow as tf

    data = example(case)

    def check():
        path = serving.export(identity(data.z), tmp_path, make_loss(case, data))
        answer = tf.saved_model.load(path).signatures["serving_default"](tf.constant(data.z))
        expected = np.exp(expected_log_posterior(case, data))
        ours = answer["probabilities"].numpy()
        if case.form not in BINARY:
            ours = ours[..., data.priors > 0]
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)

    holds(check, causes(case))


def is_searched(case):
    """What a search takes, without what it takes for a failed trial."""
    return case.form not in BINARY and not (case.counted or (case.form in VECTORS and case.ignored))


@slow
@parametrized("search", [c for c in some(20) if is_searched(c)])
def test_search(case, tmp_path):
    data = example(case)
    data.z[..., data.priors == 0] = -9  # An absent class is never the decision.

    def check():
        hypermodel = tuning.BalancedHyperModel(
            lambda: identity(data.z, trained=True),
            data.priors,
            losses=[make_loss(case, data)],
            target_priors=data.target_priors,
            decision=lambda loss: Decision(loss, by="logits"),
            compile_kwargs={"optimizer": keras.optimizers.SGD(0.0)},
        )
        tuner = tuning.GridSearch(
            hypermodel, hypermodel.objective, directory=tmp_path, project_name="p"
        )
        arrays = (data.z, data.y)
        # What goes wrong there is to stop the search.
        tuner.search(*arrays, validation_data=arrays, batch_size=8, verbose=0)
        (trial,) = tuner.oracle.get_best_trials()
        assert trial.score == pytest.approx(expected_recalls(case, data), rel=1e-4)

    holds(check, causes(case))
