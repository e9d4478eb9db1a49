"""Settings of every stage, and recipes."""
