"""One file a family: `KIND` (see ../kinds.py) and `CONFIGS`, the tiny models that the contract suites run over."""
