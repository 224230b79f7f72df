"""`python -m wideresnet` is `wrn`."""

from __future__ import annotations

import sys

from wideresnet.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
