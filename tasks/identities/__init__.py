"""Who is who: the engine that groups faces, and what people decide about it."""
