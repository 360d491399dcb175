"""How the small simulated sky is made; only the stage `simulate` looks in here."""
