"""Bring a 3D printer back into OctoPrint the moment it returns, and never harm a print in doing so.

A map of the modules, by what each of them knows:

==================  =========================================================================
``rules``           when to look, open, poke, connect, close: pure decisions, no I/O, no clock
``words``           the rules' state in sentences for people; decides nothing
``firmware``        bytes from a printer -> signs of life; no I/O
``port``            the only module that opens serial ports; who else holds one
``inotify``         the kernel's file notifications, nothing else
``devices``         the only module that knows udev: which node is the printer, when it comes and goes
``octoprint``       the only module that speaks HTTP: OctoPrint's words -> ours
``watcher``         one printer: waits on its sources, feeds the rules, carries effects out
``daemon``          all printers: one monitor, one watcher each, signals
``control``         the local socket behind status, retry, pause and resume
``memory``          what must survive a restart: a hold, in the state folder
``config``          TOML, environment, flags and OctoPrint's config.yaml -> frozen dataclasses
``logs``            lines for the journal or a terminal
``simulator``       a printer on a pty, for the demo and the tests
``fake_octoprint``  a minimal OctoPrint, for the demo and the tests
``real_octoprint``  a real OctoPrint in a cache folder, for the demo and the tests
``demo``            the whole story on this machine without hardware
``cli``             the commands, thin
==================  =========================================================================
"""

__version__ = "0.1.0"
