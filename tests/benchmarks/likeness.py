"""Whether the synthetic crowd that searching is measured on lies as real faces do.

    python -m tests.benchmarks.likeness     LFW's shared crops and `tests.crowd`, side by side (needs the installed models)

Similarities of one person's faces and of different people's; how near the 1st, 10th, 100th and 1,000th nearest stranger is; and
the local intrinsic dimension at so many strangers (Levina and Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension",
NIPS 2004), which says how many faces are about as near as the nearest: what an index has to cope with. `isotropic` is what
vectors without a spectrum would be.
"""

import numpy as np

from tests import crowd
from tests.benchmarks.grouping import embed_crops
from tests.benchmarks.table import Row, markdown

RANKS = (1, 10, 100, 1000)
NEAREST = (10, 50, 300)


def main() -> None:
    """Measure and print one table."""
    embeddings = embed_crops(mirrored=True)
    real = np.stack([embeddings[name] for name in sorted(embeddings)])
    people = np.unique([name.rsplit("_", 1)[0] for name in sorted(embeddings)], return_inverse=True)[1]
    drawn = len(real), real.shape[1], 2
    isotropic = np.random.default_rng(0).standard_normal(real.shape, np.float32)
    isotropic /= np.linalg.norm(isotropic, axis=1, keepdims=True)
    print(f"{len(real):,} faces of {people.max() + 1:,} people, {real.shape[1]}-D\n")
    rows = [
        described("LFW's crops by dlib's network", real, people),
        described("the synthetic crowd", crowd.vectors(*drawn), crowd.people_of(*drawn)),
        described("isotropic, everybody once", isotropic, np.arange(len(real))),
    ]
    print(markdown(rows))


def described(what: str, faces: np.ndarray, people: np.ndarray) -> Row:
    """Similarities and local intrinsic dimension of faces (N, D) of so many people (N,)."""
    similarities = faces @ faces.T
    same = people[:, None] == people
    above = np.triu(np.ones_like(same), 1)
    of_one, of_two = similarities[same & above], similarities[~same & above]
    strangers = -np.sort(-np.where(same, -2, similarities), axis=1)[:, : max(RANKS)].astype(np.float64)
    distances = np.sqrt(2 - 2 * np.minimum(strangers, 1 - 1e-9))
    dimensions = [np.median(1 / np.log(distances[:, k - 1 : k] / distances[:, : k - 1]).mean(axis=1)) for k in NEAREST]
    one = f"one person {of_one.mean():.3f} ± {of_one.std():.3f}, " if len(of_one) else ""
    return Row(
        what,
        f"{one}different people {of_two.mean():.3f} ± {of_two.std():.3f}; nearest strangers "
        + ", ".join(f"{strangers[:, rank - 1].mean():.3f}" for rank in RANKS),
        "local intrinsic dimension " + ", ".join(f"{d:.0f} at {k}" for d, k in zip(dimensions, NEAREST, strict=True)),
    )


if __name__ == "__main__":
    main()
