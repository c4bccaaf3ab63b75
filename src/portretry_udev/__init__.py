"""Bring a 3D printer back into OctoPrint the moment it returns, and never harm a print in doing so.

A map of the modules, by what each of them knows:

====================  =======================================================================
``rules``             when to look, open, poke, connect, close: pure decisions; no I/O, no clock
``events``            what the rules hear and what they answer, as data
``words``             the rules' state in sentences for people; decides nothing
``firmware``          bytes from a printer -> signs of life; no I/O
``port``              the only module that opens serial ports; who else holds one
``inotify``           the kernel's file notifications, nothing else
``devices``           the only module that knows udev: which node is the printer, and its news
``octoprint``         OctoPrint's words -> ours
``about``             what an OctoPrint is: version, safe mode, what our key may, rival plugins
``push``              OctoPrint's push socket -> events
``transport``         the ways to that socket; ``websocket`` is the usual one
``rest``              the only module that speaks HTTP: answers, or whose fault it was
``whereabouts``       whether OctoPrint's own process can be seen from here
``asker``             asks OctoPrint, in a thread of its own
``watcher``           one printer: waits on its sources, feeds the rules, carries effects out
``daemon``            all printers: one monitor, one watcher each, signals
``notify``            what systemd is told of the service: ready, reloading, alive
``watchdog``          whether every loop that must be alive still comes round
``unit``              what a configuration needs of the systemd unit beyond what that has
``control``           the local socket behind status, retry, pause and resume: its lines, and how to ask
``control_server``    the service's end of it
``tally``             what the rules did, counted; pure
``metrics``           those counts for Prometheus, in a file
``memory``            what must survive a restart: a hold or a pause, in the state folder
``settings``          every setting: its form, its range, where it may stand
``config``            TOML, environment and flags -> frozen dataclasses, all mistakes at once
``config_edit``       one table of a configuration changed, and nothing beside it
``finding``           where an OctoPrint is, if nobody has said
``files``             a file is there whole or not at all
``keys``              where an API key comes from, and whether it is kept well enough
``octoprint_config``  OctoPrint's own config.yaml: PortRetry's settings in it
``logs``              lines for the journal or a terminal
``probe``             one careful look at one port
``listing``           what ``ports`` shows, and which name of a port to configure
``matching``          which device a configuration means: never a wrong one, never two
``udev_rule``         the udev rules of one installation, for its configured printers
``install``           our files in the system: which, where, and what would change
``program``           which program the service runs, and whether root should
``activation``        what udev and systemd are told about those files
``uninstall``         what of ours is there, and how it goes
``installation``      both from the plan to what runs, in the right order
``surroundings``      what the machine, or the container, lets us hear and see of devices
``login``             how to get an API key from OctoPrint
``wizard``            the questions of setup: what has to be asked, and what is clear without
``questions``         what a question is, and who answers it; ``terminal`` does for a person
``interview``         those questions, with this machine behind them
``setup``             what their answers have to be written, as a plan; ``setup_run`` is the whole way
``waiting``           waits until the service has its printer connected
``doctor``            why nothing happens: all checks, by subject in ``doctor_machine``, ``doctor_service``,
                      ``doctor_octoprint`` and ``doctor_port``; pure
``findings``          what the doctor can say: the catalogue
``facts``             what the doctor has found out, as data
``doctor_facts``      finds that out: /proc, /sys, systemctl; ``doctor_patients``: keys, OctoPrints, ports
``doctor_screen``     how the doctor's report looks
``cli``               the commands, thin; the modules whose names begin with ``cli_`` are its parts
``overview``          what ``status`` shows to people; ``live`` draws it in place on a terminal
``completion``        what the shell offers after TAB
``demo``              the whole story on this machine without hardware
``simulator``         a printer on a pty; ``fake_marlin`` is its firmware
``fake_octoprint``    a minimal OctoPrint; ``fake_comm`` and ``fake_http`` are its two ends
``real_octoprint``    a real OctoPrint in a cache folder
====================  =======================================================================

The last three rows, and what they name, serve the demo and the tests alike.
"""

__version__ = "0.1.0"
