"""What appending predictions to the log costs."""
