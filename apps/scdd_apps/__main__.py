"""`python -m scdd_apps`."""

from scdd_apps.cli import main

main()
