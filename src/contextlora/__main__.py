"""`python -m contextlora`."""

import sys

from contextlora.cli import main

sys.exit(main())
