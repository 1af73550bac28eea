"""Training datasets: made once, split, stored under their content, made again."""
