"""`python -m tfdet` is the command `tfdet`."""

import sys

from tfdet.cli import main

if __name__ == "__main__":
    sys.exit(main())
