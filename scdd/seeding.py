"""Every draw takes a generator made from what it is for, so no draw depends on history."""

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch


def generator(
    seed: int, purpose: str, *index: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """Return a `torch.Generator` that depends on all arguments and on nothing else.

    The arguments are hashed (numpy's SeedSequence), never added, so neighbouring seeds and
    indices give unrelated streams.
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    # As a spawn key of whole 64-bit words: a plain list runs (1, "a") and (1, "a", 0) together.
    key = np.array([word, *index], dtype=np.uint64).astype("<u8").view("<u4").tolist()
    entropy = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(entropy) & (2**63 - 1))


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *index: int) -> Iterator[None]:
    """Seed torch's global generators inside the block, for code that draws from them.

    That is weight initialisation and dropout. The CPU's state before is restored; those of
    accelerators are not, as reading them would wait for the device.
    """
    word = generator(seed, purpose, *index).initial_seed()
    before = torch.get_rng_state()
    # Not torch.manual_seed: for GPUs not yet in use it keeps a list that grows with every call.
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word)
    try:
        yield
    finally:
        torch.set_rng_state(before)
