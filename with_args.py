"""Runs Python with the arguments given and those in the variable ARGS, for the Makefile: no shell reads them."""

import os
import shlex
import sys

try:
    words = shlex.split(os.environ.get("ARGS", ""))
except ValueError as error:
    text = f"ARGS must be words, quoted where they hold blanks or quotes ({error}): {os.environ['ARGS']}"
    print(text, file=sys.stderr)
    sys.exit(2)
os.execv(sys.executable, [sys.executable, *sys.argv[1:], *words])
