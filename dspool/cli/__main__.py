"""`python -m dspool.cli` is `dspool`."""

import sys

from dspool.cli import main

sys.exit(main())
