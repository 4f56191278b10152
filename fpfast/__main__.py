"""``python -m fpfast`` is the command ``fpfast``."""

import sys

from fpfast.cli import main

sys.exit(main())
