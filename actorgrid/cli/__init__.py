"""The command line, ``actorgrid ...``. Names, JSON shapes and exit codes are in design section 16; scripts rely on them."""
