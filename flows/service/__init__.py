"""The web service: a JSON API and a page over one catalog."""
