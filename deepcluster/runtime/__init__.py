"""The machine: devices, threads, signals, processes and how they share images, terminal, notebook."""
