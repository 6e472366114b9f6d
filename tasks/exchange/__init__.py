"""To and from other programs and other catalogs: exports, and the portable archive of a collection."""
