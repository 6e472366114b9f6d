"""How good models are: verification, attributes, restoration, grouping and fairness, on labelled pictures."""
