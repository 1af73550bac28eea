"""The trainer in PostgreSQL: the only modules, with the migrations, that know SQL.

Functions take the connection of a transaction that their caller opened.
"""
