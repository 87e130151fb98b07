"""Measures what the losses do, and reports it.

    python -m benchmarks list
    python -m benchmarks run consistency                          # what has no result yet
    python -m benchmarks run consistency --only loss=GLA q=0.3 --set problems=20 --output try.jsonl
    python -m benchmarks report                                   # every report again
    python -m benchmarks report consistency --results try.jsonl   # a report on other results

A run is appended to `benchmarks/results` as it ends, and a rerun does what is missing. The folder
`benchmarks/reports` has a page per question, made of the committed results.
"""

import argparse
import json
import pathlib
import sys
import time
from concurrent import futures

from benchmarks import questions, reporting, store, workers


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name every question")
    run = commands.add_parser("run", help="measure what has no result yet")
    run.add_argument("name", choices=questions.names(), metavar="NAME")
    run.add_argument(
        "--only", nargs="+", action="extend", type=setting, default=[], metavar="KEY=VALUE"
    )
    run.add_argument(
        "--set", nargs="+", action="extend", type=setting, default=[], metavar="KEY=VALUE"
    )
    run.add_argument("--output", type=pathlib.Path, help="default: that of the committed results")
    run.add_argument("--workers", type=int, help="runs at a time, in processes of their own")
    report = commands.add_parser("report", help="write the reports; with --results, print one")
    report.add_argument("name", nargs="?", choices=questions.names(), metavar="NAME")
    report.add_argument("--results", nargs="+", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.command == "report" and args.results and not args.name:
        parser.error("--results needs the NAME of a question")
    return args


def setting(text):
    """Returns key and value; a value is JSON, or else a string."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE. Received: {text}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def chosen(cases, only, replaced):
    """Returns the cases of which every value in `only` is one asked for, with values replaced.

    Raises:
        ValueError: for a setting that no case has, or when no case is left.
    """
    cases = list(cases)
    names = {name for case in cases for name in case}
    if unknown := {name for name, _ in [*only, *replaced]} - names:
        raise ValueError(
            f"The settings are {', '.join(sorted(names))}. Received: {', '.join(sorted(unknown))}"
        )
    wanted = {name: [value for key, value in only if key == name] for name, _ in only}
    left = [
        case | {name: value for name, value in replaced if name in case}
        for case in cases
        if all(case.get(name) in values for name, values in wanted.items())
    ]
    if not left:
        raise ValueError(f"No case has {', '.join(f'{k}={v}' for k, v in only)}.")
    return list({store.key(case): case for case in left}.values())


def run(question, cases, path, number):
    """Measures the cases that the file has no run of; returns how many failed."""
    left = store.missing(cases, path)
    print(f"{len(cases) - len(left)} runs done before, {len(left)} to do: {path}")
    start, failed = time.perf_counter(), 0
    jobs = workers.run_all(question.measure, left, number) if number else alone(question, left)
    for settings, job in jobs:
        title = ", ".join(f"{name} {value}" for name, value in settings.items())
        if error := job.exception():  # The others can be done all the same.
            failed += 1
            print(f"failed: {title}: {error!r}", flush=True)
            continue
        store.append(path, settings, job.result())
        print(f"{(time.perf_counter() - start) / 60:.1f} min: {title}", flush=True)
    return failed


def alone(question, cases):
    """Yields settings and the future of each run, all in this process."""
    for settings in cases:
        job = futures.Future()
        try:
            job.set_result(question.measure(**settings))
        except Exception as error:
            job.set_exception(error)
        yield settings, job


def main(argv=None):
    args = parse_arguments(argv)
    if args.command == "list":
        for name in questions.names():
            print(f"{name:<16} {questions.docstring(name)[0]}")
    elif args.command == "run":
        question = questions.load(args.name)
        if not hasattr(question, "cases"):
            sys.exit(f"{args.name} reports on {', '.join(questions.result_files(args.name))}")
        try:
            cases = chosen(question.cases(), args.only, args.set)
        except ValueError as error:
            sys.exit(str(error))
        path = args.output or store.path_of(questions.result_files(args.name)[0])
        if failed := run(question, cases, path, args.workers):
            sys.exit(f"{failed} runs failed; a rerun tries them again")
    elif args.results:
        print(reporting.render(args.name, store.read(*args.results)))
    else:
        for name in [args.name] if args.name else questions.names():
            reporting.write(name)


if __name__ == "__main__":
    main()
