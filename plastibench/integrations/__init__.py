"""Callbacks that put interventions to work in other libraries' training loops. Nothing of plastibench imports them."""
