"""Versions of models: installed and registered, gated against each other, switched, and bridged meanwhile."""
