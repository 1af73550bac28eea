"""What every service stands on: settings, server, errors, identity, database, metrics and logs.

Nothing here knows what a feature, a model or a prediction is.
"""
