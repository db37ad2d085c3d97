"""The parts of the messenger's routes: codes, bodies, limits and declarations."""
