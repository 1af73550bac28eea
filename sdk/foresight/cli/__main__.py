"""The command line as a module: `python -m foresight.cli`."""

from foresight.cli import main

if __name__ == "__main__":
    main()
