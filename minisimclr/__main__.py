"""`python -m minisimclr`."""

import signal

if __name__ == "__main__":
    # While the package is loaded there is nothing to stop: Ctrl-C ends the process, without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from .cli import entry

    entry()
