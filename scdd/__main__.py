"""`python -m scdd`, also under torchrun."""

from scdd.cli import main

main()
