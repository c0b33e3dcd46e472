"""`python -m mltrader` is the command `mltrader`."""
from mltrader.cli import main

if __name__ == "__main__":
    main()
