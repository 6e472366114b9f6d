"""Networks, checkpoint readers, preprocessing, alignment and losses: torch and nothing of ours."""
