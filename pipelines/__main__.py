"""``python -m efafnet.pipelines`` is the command ``efafnet``, also where nothing is installed."""

import sys

from efafnet.pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
