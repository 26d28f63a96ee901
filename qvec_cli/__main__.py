"""``python -m qvec_cli``."""

if __name__ == "__main__":
    from qvec_cli.cli.app import main

    main()
