"""What the web service keeps: tokens, requests that were answered, jobs in processes of their own."""
