"""`python -m rawredis_llm` is the command `rawredis-llm`."""

import sys

from .cli import main

sys.exit(main())
