"""`python -m convtvm` is the command `convtvm`."""

import sys

from convtvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
