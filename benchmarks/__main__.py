"""`python -m benchmarks [SLUG...]`."""

import sys

from benchmarks.compare import run, text

print(text(run(sys.argv[1:])))
