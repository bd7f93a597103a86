"""KRR-ST (arXiv:2310.06511) and Boost (arXiv:2507.21455): pairs of images and representations.

A bilevel problem: online networks are trained on the pairs, and the pairs are changed so that
kernel ridge regression on the features of these networks gives real images the teacher's outputs.
"""
