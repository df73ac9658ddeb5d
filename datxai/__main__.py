"""``python -m datxai`` is the command ``datxai``."""

import sys

try:
    from datxai.cli import main
except KeyboardInterrupt:
    sys.exit(130)

main()
