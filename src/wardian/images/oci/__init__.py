"""Images as the Open Container Initiative describes them: fetched, checked, and laid over each other."""
