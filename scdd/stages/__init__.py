"""The stages, one file each; a stage knows no other stage: they meet through artefacts."""
