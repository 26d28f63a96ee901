"""``qvec``, and ``python -m qvec_cli``."""

import signal


def main() -> None:
    """Runs the command line; Ctrl-C while its modules are imported ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qvec_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
