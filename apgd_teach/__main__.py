"""`python -m apgd_teach`: the command line, also where no script folder is on the path."""

import sys

from apgd_teach.cli import main

if __name__ == "__main__":
    sys.exit(main())
