"""``python -m plastibench``."""

from plastibench.cli import main

if __name__ == "__main__":
    main()
