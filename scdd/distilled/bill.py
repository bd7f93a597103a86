"""The storage bill: what N images with targets may hold, and what a set of pairs does hold.

Counted in numbers (floats), whatever precision a file gives them. The budget of N is what N raw
images with their targets take, as KRR-ST (arXiv:2310.06511) stores them; the reading that fits the
sizes of Boost (arXiv:2507.21455), whose own rule is not known. Coefficients of turned views that
are kept beside their approximation, to measure what it costs, are on no bill.
"""

from typing import NamedTuple

from scdd.tables import counted

CHANNELS = 3


class Sizes(NamedTuple):
    """How large the parts of a set of pairs are; without bases the images and targets are raw."""

    image_size: int
    """Side of an image in pixels."""
    target_dim: int
    """Length of a target."""
    pairs: int
    image_bases: int = 0
    """0: none, raw images."""
    target_bases: int = 0
    """0: none, raw targets."""
    basis_size: int = 0
    """Side of a basis image in pixels."""
    approximations: int = 0
    """Turned views whose targets a network predicts."""
    hidden: int = 0
    """Hidden units of each of these networks."""
    stored_views: int = 0
    """Turned views whose targets are stored as coefficients."""

    @property
    def image_floats(self) -> int:
        """Numbers of a raw image."""
        return CHANNELS * self.image_size**2

    @property
    def basis_floats(self) -> int:
        """Numbers of a basis image."""
        return CHANNELS * self.basis_size**2

    @property
    def fixed_floats(self) -> int:
        """Numbers that do not depend on how many pairs there are: bases, means, networks."""
        vectors, width = self.image_bases, self.target_bases
        means = (self.basis_floats if vectors else 0) + (self.target_dim if width else 0)
        network = 2 * width * self.hidden + self.hidden + width
        bases = vectors * self.basis_floats + width * self.target_dim
        return bases + means + self.approximations * network

    @property
    def pair_floats(self) -> int:
        """Numbers of one pair."""
        image = self.image_bases or self.image_floats
        return image + (1 + self.stored_views) * (self.target_bases or self.target_dim)


def storage_floats(sizes: Sizes) -> int:
    """Numbers that the whole set takes."""
    return sizes.fixed_floats + sizes.pairs * sizes.pair_floats


def budget_floats(budget_n: int, image_size: int, target_dim: int) -> int:
    """Numbers that N raw images with their targets take."""
    return budget_n * (CHANNELS * image_size**2 + target_dim)


def least_budget(sizes: Sizes) -> int:
    """The smallest N whose budget has room for the whole set."""
    return -(-storage_floats(sizes) // budget_floats(1, sizes.image_size, sizes.target_dim))


def most_pairs(sizes: Sizes, budget_n: int) -> int:
    """How many pairs the budget of `budget_n` has room for beside bases of these sizes.

    Negative where the bases alone are beyond it; `sizes.pairs` does not count.
    """
    budget = budget_floats(budget_n, sizes.image_size, sizes.target_dim)
    return (budget - sizes.fixed_floats) // sizes.pair_floats


def describe_bill(sizes: Sizes, budget_n: int) -> str:
    """Say in a line what a set takes of its budget."""
    taken = storage_floats(sizes)
    budget = budget_floats(budget_n, sizes.image_size, sizes.target_dim)
    parts = counted(sizes.pairs, "pair")
    if sizes.image_bases or sizes.target_bases:
        parts += f", {sizes.image_bases} image and {sizes.target_bases} target bases"
    if sizes.approximations:
        parts += f", {sizes.approximations} networks of {sizes.hidden} hidden units"
    return (
        f"{parts}: {taken} numbers, {100 * taken / budget:.1f} % of the {budget} of "
        f"{budget_n} raw images with targets ({2 * taken} bytes in half precision)"
    )
