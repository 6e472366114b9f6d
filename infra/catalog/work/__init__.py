"""The ledger of the work: runs, their parts and schedules, signs of life, and the books they close."""
