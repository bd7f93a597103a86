"""`scdd-apps export`: a trained or pruned network in a format that other programs run."""
