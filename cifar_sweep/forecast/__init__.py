"""How long a sweep takes, and how long it still takes."""
