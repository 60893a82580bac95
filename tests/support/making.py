"""What processes do with a `MadeOnce`; imports little, so that they start fast."""

import os
import signal
import time


def ask(made, barrier, log):
    """20 numbers at once with others; each that is made is a line of the log."""
    barrier.wait()
    for number in range(20):

        def make(number=number):
            with open(log, "a") as file:
                file.write(f"{number}\n")
            time.sleep(0.002)  # the others ask meanwhile
            return b"%d" % number * 100

        assert made.get(number, make) == b"%d" % number * 100


def die_making(made):
    """Be killed while making number 0."""
    made.get(0, lambda: os.kill(os.getpid(), signal.SIGKILL))
