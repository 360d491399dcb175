"""SDSS itself: names, paths, object ids, frame format, extinction, fetching."""
