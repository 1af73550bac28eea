"""The four services of Foresight and the runtime that they stand on. Services never import each other."""
