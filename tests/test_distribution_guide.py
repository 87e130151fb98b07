"""Every snippet of the page on many devices runs as written, on several of them."""

import json
import re
import runpy
import shlex

import keras
import pytest
from pages import code_blocks
from processes import ROOT, finish, free_addresses, start

PAGE = (ROOT / "docs" / "devices.md").read_text()
DATA, JAX, HEAD, MACHINES, MIRRORED, TPU = code_blocks(PAGE)


def on(backend):
    return pytest.mark.skipif(
        keras.backend.backend() != backend, reason=f"runs with KERAS_BACKEND={backend}"
    )


def outputs(*code, **environment):
    programs = [
        start("-c", part, KERAS_BACKEND=keras.backend.backend(), **environment, **one)
        for part, one in code
    ]
    ended = finish(*programs)
    assert [exit_code for exit_code, _ in ended] == [0] * len(code), ended
    return [json.loads(output.splitlines()[-1]) for _, output in ended]


def test_snippets_are_short():
    assert all(len(block.splitlines()) <= 14 for block in (JAX, HEAD, MACHINES, MIRRORED, TPU))


@on("jax")
def test_jax_devices():
    code = f"""{DATA}{JAX}
import json
data_parallel = len(model.get_weights()[0].shape), len(model.weights[0].value.devices())
{HEAD}
print()
print(json.dumps([data_parallel, model.weights[0].value.sharding.shard_shape((64, 10))]))"""
    (found,) = outputs((code, {}), JAX_NUM_CPU_DEVICES="4")
    assert found == [[2, 4], [64, 5]]


@on("jax")
def test_jax_machines():
    code = MACHINES + "\nimport json\nprint()\nprint(json.dumps(model.get_weights()[0].tolist()))"
    (address,) = free_addresses(1)
    first, second = outputs(
        *((code, {"KERAS_DISTRIBUTION_PROCESS_ID": str(machine)}) for machine in range(2)),
        KERAS_DISTRIBUTION_JOB_ADDRESSES=f"{address},{address}",
        KERAS_DISTRIBUTION_NUM_PROCESSES="2",
        JAX_NUM_CPU_DEVICES="1",
    )
    assert first == second


@pytest.mark.slow
@on("tensorflow")
def test_mirrored_and_tpu():
    code = f"""
import json
import tensorflow as tf
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
{DATA}{MIRRORED}
found = [strategy.num_replicas_in_sync, int(model.optimizer.iterations.numpy()), len(y) // 32]
try:
{re.sub("(?m)^", "    ", TPU)}
except Exception as error:
    found.append(str(error))
print()
print(json.dumps(found))"""
    (found,) = outputs((code, {}))
    assert found[0] == 2
    assert found[1] == 2 * found[2]
    assert "TPU" in found[3]  # There is none here.


@on("tensorflow")
def test_command_of_the_workers(tmp_path):
    commands = code_blocks(PAGE, "sh")[0].replace("\\\n", "")
    first, second = (shlex.split(line) for line in commands.splitlines())
    config = json.loads(second.pop(0).removeprefix("TF_CONFIG="))
    assert config["task"] == {"type": "worker", "index": 0}
    for program, script, *arguments in (first, second):
        assert program == "python"
        parse = runpy.run_path(str(ROOT / script))["parse_arguments"]
        assert parse(arguments).data.name == "shards"
