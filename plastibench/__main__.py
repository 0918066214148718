"""``python -m plastibench``."""

from plastibench.cli.main import main

if __name__ == "__main__":
    main()
