"""The contract of a result: everything that decides it. Results under the same contract can be compared, others cannot."""

import hashlib
import json

from models.spec import ModelSpec


def contract(spec: ModelSpec, weights_digest: str) -> str:
    """Return the contract as 16 hexadecimal characters: the beginning of the SHA-256 of `contract_content`."""
    return hashlib.sha256(contract_content(spec, weights_digest).encode()).hexdigest()[:16]


def contract_content(spec: ModelSpec, weights_digest: str) -> str:
    """Return the contract as JSON for a person: model, role, dimension, scale, preprocessing with its template, weights.

    The same facts always give the same text.
    """
    facts = {**spec.fingerprint, "weights": weights_digest}
    return json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
