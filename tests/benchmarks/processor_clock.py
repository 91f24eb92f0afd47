"""Runs a script or a module whose clock, `time.perf_counter`, counts the processor seconds of its process.

On a machine that others use too, wall-clock seconds measure the others. For one thread on an idle machine the two are
the same. Usage: `python processor_clock.py SCRIPT_OR_MODULE [ARGUMENTS]`.
"""

import runpy
import sys
import time

if __name__ == "__main__":
    time.perf_counter = time.process_time
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
