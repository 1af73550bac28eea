"""Systems that Foresight is measured against, each in an environment of its own.

`<name>.lock` pins the packages of a peer with hashes; its programs (`<name>_*.py`) run in that environment and
print one JSON object. They import nothing of Foresight.
"""
