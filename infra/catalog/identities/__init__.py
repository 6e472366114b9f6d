"""Who is who in the catalog: identities, what people decided, and how the one follows the other."""
