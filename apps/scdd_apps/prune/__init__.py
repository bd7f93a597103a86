"""`scdd-apps prune`: network slimming (arXiv:1708.06519) on a distilled file alone.

Sparsity training, removal of the channels with the smallest BatchNorm scales, recalibration,
fine-tuning; torch-pruning does the surgery, the choice of channels is ours.
"""
