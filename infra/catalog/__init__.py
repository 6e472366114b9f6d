"""The SQL catalog: what is known of every image, face, person, model version and run. It is the ledger of the work."""
