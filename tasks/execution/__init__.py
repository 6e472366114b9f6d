"""How stages run: on their device, side by side, within limits of time and memory, one bad item apart from the rest."""
