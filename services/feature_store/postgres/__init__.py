"""The feature store in PostgreSQL: the only modules, with the migrations and `asof.py`, that know SQL.

Rows of a group version lie in `rows_<group id>`. Its columns are named by position (`k0`, `k1`, … for keys, `f0`,
`f1`, … for features), so that no name of a user can clash with one of ours or be too long for PostgreSQL.
"""
