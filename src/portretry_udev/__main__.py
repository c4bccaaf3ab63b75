"""``python -m portretry_udev`` is ``portretry-udev``."""

from portretry_udev.cli import main

if __name__ == "__main__":
    main()
