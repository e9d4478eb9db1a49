"""What models score and cost."""
