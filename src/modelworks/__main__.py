"""`python -m modelworks` is the command `modelworks`."""

from modelworks.cli import main

if __name__ == "__main__":
    main()
