"""The service of the README's first ten minutes: will this order be delivered late?"""
