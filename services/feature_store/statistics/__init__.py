"""Statistics of rows: computed in one pass with a bound on memory, kept, and compared.

`description` holds the values and their rules. `engine` computes them: `number_columns` and `text_columns` with the
sketches of `ranks`, `frequencies`, `distincts` and `moments`. `comparison` compares them, `tables` are their Arrow
forms, and `described` is what RPCs and writers use.
"""
