"""What the losses do, measured: `python -m benchmarks list | run NAME | report [NAME]`."""
