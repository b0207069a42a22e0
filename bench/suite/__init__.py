"""The suite behind `python -m bench`: load, measurement and report; see `../README.md`."""
