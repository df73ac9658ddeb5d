"""``python -m datxai`` is the command ``datxai``."""

from datxai.cli import main

main()
