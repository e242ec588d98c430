"""A plug-in of worldsim: a point mass on a table. Read `world.py`, `policy.py` and `reflector.py`, which see through `eye.py`."""
