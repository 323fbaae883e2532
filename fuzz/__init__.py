"""Random damage to what strangers may send: `make fuzz`, or `python -m fuzz.decode --seconds 60`."""
