"""`python -m memfold` is `memfold`."""

from memfold.api.cli import main

if __name__ == "__main__":
    main()
