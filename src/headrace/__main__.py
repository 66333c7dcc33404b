"""``python -m headrace``."""

from headrace.main import main

main()
