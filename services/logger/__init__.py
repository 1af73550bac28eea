"""The logger: takes predictions with the features behind them, and their outcomes, and serves both by cursor."""
