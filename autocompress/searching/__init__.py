"""The search itself: ask, measure, tell; and from the trials to the answer."""
