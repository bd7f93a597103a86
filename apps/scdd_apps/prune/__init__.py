"""`scdd-apps prune`: structured pruning on a distilled file alone.

Network slimming (arXiv:1708.06519): sparsity training, removal of the channels with the smallest
BatchNorm scales, recalibration, fine-tuning; without BatchNorm by the size of filters.
torch-pruning does the surgery, the choice of channels is ours.
"""
