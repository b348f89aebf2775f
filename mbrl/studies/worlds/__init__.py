"""Which environments a user may bring: each is checked, trained on, resumed and exported."""
