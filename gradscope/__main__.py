"""`python -m gradscope` is the command `gradscope`."""

from gradscope.cli import main

if __name__ == "__main__":
    main()
