"""`python -m rtdetrv4.cli`, for launchers that start a module."""

import sys

from rtdetrv4.cli import main

if __name__ == "__main__":
    sys.exit(main())
