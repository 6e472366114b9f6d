"""Hubness: how easily a face resembles anybody. What a similarity owes to it is no sign of one person.

Some faces lie near many others: blurred ones, or those of a kind that the embedding learned little of. A similarity is
lessened by how near strangers are to either face, as in cross-domain similarity local scaling (Conneau et al., "Word
Translation Without Parallel Data", ICLR 2018, Section 2.3) and in the adaptive score normalisation of speaker verification
(Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition", Interspeech 2017). The strangers are
people of the catalog itself, so nobody's face is shipped for it.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

COHORT = 2_000  # people that a face is compared with; twice as many gain nothing (tests/benchmarks/grouping.py)
STRANGERS = 10  # the nearest of them, of whom the mean is taken
FEWEST = 2 * STRANGERS  # people in a cohort of which anything is said

Vectors = NDArray[np.float32]


def hubness(embeddings: Vectors, cohort: Vectors, same: float) -> Vectors:
    """Mean similarity (N,) float32 of faces (N, D) to the nearest strangers in a cohort (C, D), all of unit length.

    It counts from the cohort's own mean, and only as far as the cohort is large: 0 for the average face, and for all where
    there is no cohort. Among few people nobody is near, and who is nearest says little. Cohort members from the similarity
    `same` on are most likely the face's own person and are passed over, at most STRANGERS of them.
    """
    if len(cohort) < FEWEST:
        return np.zeros(len(embeddings), np.float32)
    more = _nearness(embeddings, cohort, same) - _nearness(cohort, cohort, same).mean()
    return more * np.float32(min(len(cohort) / COHORT, 1))


def _nearness(embeddings: Vectors, cohort: Vectors, same: float) -> Vectors:
    nearest, _ = faiss.knn(embeddings, cohort, FEWEST, metric=faiss.METRIC_INNER_PRODUCT)
    first = np.minimum((nearest >= same).sum(axis=1), STRANGERS)  # they come in order
    strangers: Vectors = np.take_along_axis(nearest, first[:, None] + np.arange(STRANGERS), axis=1)
    return strangers.mean(axis=1)
