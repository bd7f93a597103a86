"""Distilled files for people without scdd, and the images of other methods as distilled files."""

from scdd.exchange.export import export_file
from scdd.exchange.importing import import_folder

__all__ = ["export_file", "import_folder"]
