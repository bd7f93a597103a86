"""Backbones from files that other projects wrote."""

from scdd.foreign.load import Loaded, load_backbone, squeezed_from

__all__ = ["Loaded", "load_backbone", "squeezed_from"]
