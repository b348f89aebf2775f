"""Who acts and learns: RLlib ends in this package, and nothing here knows what a world model is."""
