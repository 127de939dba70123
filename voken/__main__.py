"""`python -m voken` is the command `voken`."""

from voken.cli import main

if __name__ == "__main__":
    main()
