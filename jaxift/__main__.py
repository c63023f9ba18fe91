"""`python -m jaxift` is the same as `jaxift`."""

import sys

from jaxift.cli import main

sys.exit(main())
