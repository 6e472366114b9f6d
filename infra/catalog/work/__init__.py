"""The work of nights: runs, their parts and schedules, their failures, and signs of life."""
