"""`python -m minisimclr`."""

import sys

from .cli import main

sys.exit(main())
