"""Select: real images in place of synthetic ones (random, herding, forgetting, k_center)."""

from scdd.config.section import Section


class SelectConfig(Section):
    """Which training images stand for all of them; `method` says by what they are chosen."""

    balanced: bool = True
    """Choose `ipc` of every class. false: as many in all, but out of all classes together, of which
    some may then have more and some none."""
