"""Where the project lies, and its Makefile as the tests call it."""

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
GUARD = Path(__file__).resolve().parent / "guard"
WHOLE = "NAFLD_TESTS_WHOLE"  # set where all files are tested
# What an outer make hands to its children, and what belongs to the machine rather than to a test.
_NOT_INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "RUN", "SET", "DATA", "TESTS")
_NOT_INHERITED += ("NUMBA_DISABLE_JIT",)  # of these tests alone


def make_command(*arguments, root, **environment):
    """Command and environment of the project's Makefile for artifacts and reports under `root`."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    command = ["make", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}", *arguments]
    return command, {**inherited, "NAFLD_ROOT": str(root), **environment}


def run_make(*arguments, root, timeout=120, check=None, **environment):
    """Run the project's Makefile for artifacts and reports under `root`, with the environment of these tests.

    `check` is the exit status that is asked for; None takes any.
    """
    command, env = make_command(*arguments, root=root, **environment)
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if check is not None:
        assert done.returncode == check, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def call(path, name, *arguments):
    """Call a function of a file of tests: a process that begins anew cannot import such a file by a name."""
    return _names(str(path))[name](*arguments)


_names = functools.cache(runpy.run_path)
