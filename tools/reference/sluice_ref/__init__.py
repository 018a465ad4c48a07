"""Independent NumPy reference of the model specification; see ../README.md."""
