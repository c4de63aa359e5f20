"""`python -m dspool` is `dspool`: for where the command is not on the PATH."""

import sys

from dspool.cli import main

sys.exit(main())
