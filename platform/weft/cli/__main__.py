"""`python -m weft.cli`: the same as the `weft` script."""

from weft.cli import main

main()
