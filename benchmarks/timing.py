"""Times of functions that take turns, so that what else the machine does meets all alike."""

import json
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks import store


def seconds(function, repeats=1):
    """Returns the seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def in_turns(functions, rounds, seconds_a_turn=0.0):
    """Returns the seconds of a call of each function, `(rounds,)`; in every round in another order.

    With `seconds_a_turn` a turn is as many calls as take about so long.
    """
    repeats = {}
    for name, function in functions.items():
        function()  # Traces and compiles.
        repeats[name] = max(1, int(seconds_a_turn / seconds(function, 3))) if seconds_a_turn else 1
    rng = np.random.default_rng(0)
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for i in rng.permutation(len(functions)):
            name = list(functions)[i]
            times[name].append(seconds(functions[name], repeats[name]))
    return {name: np.array(values) for name, values in times.items()}


def ratio_and_interval(times, base):
    """Returns the median over the rounds of `times / base`, and its 95% bootstrap interval."""
    ratios = times / base
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return [round(float(v), 4) for v in (np.median(ratios), *np.quantile(medians, [0.025, 0.975]))]


def against_first(times):
    """Returns the milliseconds of each function, and the ratio to the first with its interval."""
    base = next(iter(times.values()))
    found = {}
    for name, of in times.items():
        ratio, *interval = ratio_and_interval(of, base)
        ms = round(1e3 * float(np.median(of)), 4)
        found[name] = {"milliseconds": ms, "ratio": ratio, "interval": interval}
    return found


def kilobytes(field):
    """Returns a number of `/proc/self/status`, as `VmHWM`, the peak memory of this process."""
    with open("/proc/self/status") as file:
        return int(file.read().split(f"{field}:")[1].split()[0])


def apart(function, *arguments, **environment):
    """Returns what a function returns in a process of its own; all of it must be JSON."""
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as function; "
        r"print('\n' + json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | environment,
        cwd=store.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
