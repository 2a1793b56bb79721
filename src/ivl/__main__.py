"""`python -m ivl` is `ivl`."""

from ivl.cli.main import main

if __name__ == "__main__":
    main()
